"""``combicam report``: write a run as one HTML page that opens from disk."""
