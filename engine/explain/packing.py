"""Pack an explainer's session for a pickle, and unpack it in another process."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from combicam.engine.explain.sessions import ArtifactSession, ModelSession, Session
from combicam.errors import ArtifactError
from combicam.export.formats.artifact import Description


def packed_session(session: Session) -> dict[str, Any]:
    """What makes the session again: the model on the CPU, or the bytes of its file.

    Raises:
        ArtifactError: the file is gone.
    """
    if isinstance(session, ModelSession):
        on_cpu = session.device.type == "cpu"
        module = session.module if on_cpu else copy.deepcopy(session.module).cpu()
        return {"module": module, **session.settings}
    assert isinstance(session, ArtifactSession)
    if not session.path.is_file():
        raise ArtifactError(
            f"Explainer: expected the file {session.path}, whose bytes travel in a pickle, got "
            "none; keep it, or load the explainer where it is used"
        )
    data = session.path.with_name(f"{session.path.name}.data")
    files = {path.name: path.read_bytes() for path in (session.path, data) if path.is_file()}
    return {"files": files, "name": session.path.name, "backend": session.backend}


def unpacked_session(
    state: dict[str, Any], description: Description, device: torch.device
) -> Session:
    """The inverse of :func:`packed_session`; models are traced again.

    Args:
        state: what :func:`packed_session` returned.
        description: of the explainer.
        device: where to run.
    """
    if "module" in state:
        values = {**state, "module": state["module"].to(device), "device": device}
        return ModelSession(**values)
    folder = tempfile.TemporaryDirectory(prefix="combicam-")
    for name, content in state["files"].items():
        (Path(folder.name) / name).write_bytes(content)
    path = Path(folder.name) / state["name"]
    session = ArtifactSession(path, description, state["backend"], device)
    session.folder = folder  # the file is there for as long as the session
    return session
