"""config.pbtxt beside the ONNX file, and beside what the server demands."""

from __future__ import annotations

from typing import Any

import pytest
from triton_stand_in import datatype, messages, read_config, session

from combicam import ArtifactError, ServedModel
from combicam.engine.serving.model_config import batched_tensors, preferred_sizes

TYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}


def test_configuration_is_the_files(model: ServedModel) -> None:
    config, runtime = read_config(model.path), session(model.path)
    assert config.name == model.path.name == model.name
    assert config.backend == "onnxruntime" and config.platform == "onnxruntime_onnx"
    for tensors, entries in (
        (config.input, runtime.get_inputs()),
        (config.output, runtime.get_outputs()),
    ):
        assert [t.name for t in tensors] == [e.name for e in entries]
        assert [datatype(t) for t in tensors] == [TYPES[e.type] for e in entries]
        # Compared exactly by the server; the batch comes first and is not written.
        assert [list(t.dims) for t in tensors] == [e.shape[1:] for e in entries]
        assert all(isinstance(e.shape[0], str) and len(e.shape) > 1 for e in entries)
        assert not any(t.HasField("reshape") for t in tensors)


def test_configuration_is_one_that_the_server_takes(model: ServedModel) -> None:
    config = read_config(model.path)
    assert config.max_batch_size == model.max_batch_size
    sizes = list(config.dynamic_batching.preferred_batch_size)
    assert sizes == ([] if model.max_batch_size == 1 else [2, 5])
    assert config.HasField("dynamic_batching") == (model.max_batch_size > 1)
    assert [w.batch_size for w in config.model_warmup] == sorted({1, *sizes})
    for warmup in config.model_warmup:
        assert {n: (i.data_type, list(i.dims)) for n, i in warmup.inputs.items()} == {
            t.name: (t.data_type, list(t.dims)) for t in config.input
        }
        assert all(i.zero_data for i in warmup.inputs.values())  # random bytes are no classes
    assert [g.kind for g in config.instance_group] == [messages().ModelInstanceGroup.KIND_AUTO]
    labelled = {t.name: t.label_filename for t in config.output if t.label_filename}
    assert labelled == {"logits": "labels.txt"}


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (8, (4, 8))])
def test_preferred_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert preferred_sizes(largest) == sizes


def test_tensors_that_cannot_be_batched() -> None:
    class Entry:
        name = "total"

        def __init__(self, shape: list[Any], type: str = "tensor(float)") -> None:
            self.shape, self.type = shape, type

    assert batched_tensors([Entry(["b", 3, "free"])])[0].dims == (3, -1)
    for shape in ([], ["b"], [4, 3]):
        with pytest.raises(ArtifactError, match="dynamic batch, got 'total'"):
            batched_tensors([Entry(shape)])
    with pytest.raises(ArtifactError, match="bfloat16"):
        batched_tensors([Entry(["b", 2], "tensor(bfloat16)")])
