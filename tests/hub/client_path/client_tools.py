"""What client processes and tests have in common: how weights and outputs are compared, how results are told."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


SAID = "the client says: "


def say(value: Any) -> None:
    """Hand a value to the test; the last one counts."""
    sys.stdout.write(f"\n{SAID}{json.dumps(value)}\n")


def failure(do: Callable[[], Any]) -> dict[str, Any] | None:
    """Names of the exception's classes and its sentence; None if nothing goes wrong."""
    try:
        do()
    except Exception as error:
        return {"types": [kind.__name__ for kind in type(error).__mro__], "says": str(error)}
    return None


def digests(model: Any) -> dict[str, str]:
    """Parameter and buffer names -> a hash of type, shape and every bit."""
    return {
        name: hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def outputs(model: Any) -> list[list[float]]:
    """First rows and sums of every output for one fixed image; 128 px, which stock Swin takes too."""
    import torch

    pixel_values = torch.linspace(-2, 2, 3 * 128 * 128).sin().view(1, 3, 128, 128)
    with torch.no_grad():
        found = model.eval()(pixel_values, output_hidden_states=True).to_tuple()
    tensors = [tensor for part in found for tensor in (part if isinstance(part, tuple) else (part,))]
    return [[*tensor.flatten()[:8].tolist(), tensor.double().sum().item()] for tensor in tensors]


def description(model: Any) -> dict[str, Any]:
    """All that tells whether this is the model that was pushed, and where its code came from."""
    return {
        "class": type(model).__name__,
        "remote": type(model).__module__.startswith("transformers_modules"),
        "weights": digests(model),
        "outputs": outputs(model),
    }


def cached_files() -> list[str]:
    """Files of the Hub cache in use, broken links included."""
    home = Path(os.environ["HF_HOME"])
    return sorted(str(path.relative_to(home)) for path in (home / "hub").rglob("*") if not path.is_dir())
