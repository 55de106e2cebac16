"""Choose the logits in what a network returns, and give it fixed inputs beside the images."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from combicam.errors import TraceError
from combicam.export.trace.snapshot import model_state

# Where the logits are: a key or index, or a function of what the network returns.
Output = str | int | Callable[[Any], Tensor] | None
# Arguments after the images, by name or by position.
Inputs = Mapping[str, Any] | Sequence[Any] | None


def find_logits(returned: object, output: Output = None) -> Tensor:
    """Find the logits [B,n] in what a network returns.

    Args:
        returned: a tensor, or dicts, dataclasses, lists and tuples of tensors, also nested.
        output: a key, an attribute or an index, joined by dots for nested ones
            (``heads.country.0``); a function ``returned -> [B,n]`` of torch's operations; None
            takes the only floating-point tensor [B,n] that there is.

    Raises:
        TraceError: no such tensor, or several; the message lists what is returned.
    """
    if output is None:
        known = dict(_tensors(returned))
        fitting = [tensor for tensor in known.values() if _is_logits(tensor)]
        if len(fitting) != 1:
            raise TraceError(
                f"output: expected the model to return one tensor of logits [B,n], got "
                f"{len(fitting) or 'none'}: {_listed(known) or type(returned).__name__}; choose "
                "one with output=, a key, an index or a function returned -> [B,n] (--model-output)"
            )
        return fitting[0]
    found = output(returned) if callable(output) else _part(returned, output)
    if not isinstance(found, Tensor) or not _is_logits(found):
        got = _shape(found) if isinstance(found, Tensor) else type(found).__name__
        raise TraceError(
            f"output: expected logits [B,n] from {output_name(output)}, got {got}; pass a function "
            "returned -> [B,n] that gives one score per class, such as a mean over positions"
        )
    return found


def _is_logits(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point()


def _tensors(value: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a nested value with their paths, as ``output=`` takes them."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, inner in _children(value).items():
        yield from _tensors(inner, f"{path}.{key}" if path else str(key))


def _children(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {}


def _part(returned: object, output: str | int) -> object:
    """The part of a nested value at a path of keys, attributes and indices."""
    children = _children(returned)
    if isinstance(output, int) and output < 0:
        output += len(children)
    if output in children:
        return children[output]
    value, steps = returned, str(output).split(".")
    for step in steps:
        known = {str(key): inner for key, inner in _children(value).items()}
        if step not in known and not hasattr(value, step):
            raise TraceError(
                f"output: expected {output!r} among what the model returns, got "
                f"{_listed(dict(_tensors(returned))) or type(returned).__name__}"
            )
        value = known[step] if step in known else getattr(value, step)
    return value


def _listed(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{path or 'a tensor'} {_shape(t)}" for path, t in tensors.items()]
    return ", ".join([*shown[:8], *(["..."] if len(shown) > 8 else [])])


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class ChooseLogits:
    """A forward hook that replaces what a network returns by its logits.

    Args:
        output: see :func:`find_logits`; a module's weights are buffers of the network.
    """

    def __init__(self, output: Output) -> None:
        self.output = output

    def __call__(self, module: nn.Module, _args: object, returned: object) -> Tensor:
        output = self.output
        if isinstance(output, nn.Module):
            state = {name: getattr(module, _output_buffer(name)) for name in model_state(output)}
            output = functools.partial(_call, output, state)
        return find_logits(returned, output)


def _call(module: nn.Module, state: dict[str, Tensor], returned: object) -> Tensor:
    return torch.func.functional_call(module, state, (returned,))


def _output_buffer(name: str) -> str:
    return f"combicam_output_{name.replace('.', '_')}"


def _input_buffer(key: str | int) -> str:
    return f"combicam_input_{key}"


class AddInputs:
    """A forward pre-hook that adds fixed inputs after the images.

    Args:
        values: by name or position.
        tensors: keys of those that are buffers of the module, so that they follow its device.
    """

    def __init__(self, values: Mapping[str | int, Any], tensors: Collection[str | int]) -> None:
        self.values = values
        self.tensors = tensors

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = {
            key: self._repeated(getattr(module, _input_buffer(key)), args[0].shape[0])
            if key in self.tensors
            else value
            for key, value in self.values.items()
        }
        by_position = [value for key, value in found.items() if isinstance(key, int)]
        by_name = {key: value for key, value in found.items() if isinstance(key, str)}
        return (*args, *by_position), {**kwargs, **by_name}

    @staticmethod
    def _repeated(tensor: Tensor, batch: int) -> Tensor:
        """[1,...] for every image of a batch; others as they are."""
        if tensor.ndim > 1 and len(tensor) == 1:
            return tensor.expand(batch, *tensor.shape[1:])
        return tensor


def attach(model: nn.Module, output: Output, inputs: Inputs) -> None:
    """Let a snapshot take only images and return only logits.

    Args:
        model: a snapshot.
        output: see :func:`find_logits`.
        inputs: fixed arguments after the images, by name or by position. Tensors become buffers,
            so that they follow the model's device and precision; those [1,...] are repeated for
            every image of a batch.

    Raises:
        TypeError: an output or inputs of another type.
    """
    if not (output is None or callable(output) or isinstance(output, (str, int))):
        raise TypeError(
            "Explainer: expected output as None, a key, an index or a function, got "
            f"{type(output).__name__}"
        )
    if isinstance(inputs, (str, bytes, Tensor)) or not isinstance(
        inputs, (Mapping, Sequence, type(None))
    ):
        raise TypeError(
            "Explainer: expected inputs as a dict of arguments by name, or a list of arguments "
            f"after the images, got {type(inputs).__name__}"
        )
    if output is not None:
        if isinstance(output, nn.Module):
            output = copy.deepcopy(output).eval().requires_grad_(False)
            for name, tensor in model_state(output).items():
                model.register_buffer(_output_buffer(name), tensor.detach())
            output.to("meta")
        model.register_forward_hook(ChooseLogits(output))
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs or ())
    named: dict[str | int, Any] = dict(items)
    arrays = {
        k: torch.as_tensor(v) for k, v in named.items() if isinstance(v, (Tensor, np.ndarray))
    }
    for key, tensor in arrays.items():
        model.register_buffer(_input_buffer(key), tensor.detach().clone())
    if named:
        model.register_forward_pre_hook(AddInputs(named, set(arrays)), with_kwargs=True)


def output_name(output: Output) -> str:
    """How an output is written: a key or an index, or ``module:function``; empty for None."""
    if output is None:
        return ""
    if not callable(output):
        return str(output)
    owner: Any = output if hasattr(output, "__qualname__") else type(output)
    return f"{owner.__module__ or 'builtins'}:{owner.__qualname__}"


def call_digest(output: Output, inputs: Inputs) -> str:
    """SHA-256 of an output and inputs, functions by their code and the values that they use.

    The same in every process of a version of Python; empty if there are none.
    """
    if output is None and not inputs:
        return ""
    digest = hashlib.sha256()
    _feed(digest.update, [output, inputs], {})
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any, seen: dict[int, Any]) -> None:
    """Feed a value and what it refers to; objects once, which ``seen`` keeps alive."""
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, (str, int, float, bytes, type(None))):
        update(f"{value!r};".encode())
    elif id(value) not in seen:
        seen[id(value)] = value
        update(type(value).__qualname__.encode())
        for part in _parts(value):
            _feed(update, part, seen)


def _parts(value: Any) -> Sequence[Any]:
    """What determines a function, a module or a collection."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, nn.Module):
        return [str(value), dict(value.state_dict())]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        space = value.__globals__
        used = [space[name] for name in _names(value.__code__) if name in space]
        return [value.__code__, value.__defaults__, cells, [v for v in used if _is_plain(v)]]
    call = type(value).__call__ if callable(value) else None
    if isinstance(call, FunctionType):
        return [call, vars(value)]
    try:  # what is written in C, such as operator.itemgetter("logits")
        return [pickle.dumps(value)]
    except Exception:  # of any kind; its type is fed already
        return []


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes of a function, and of those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_plain(value: object) -> bool:
    """Whether a global of a function is a value or a function, not a module or a class."""
    kinds = (Tensor, np.ndarray, FunctionType, nn.Module, Mapping, list, tuple, set, frozenset)
    return isinstance(value, (*kinds, int, float, str, bytes))
