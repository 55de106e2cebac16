"""What combicam costs, beside what people use today: ``python -m benchmarks``."""
