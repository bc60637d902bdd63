"""torchvision's transforms by name: 'GaussianBlur(kernel_size=3)' as text, applied image by image.

The text is parsed, never evaluated: calls of torchvision.transforms.v2's own names, with literal arguments or more
such calls. Each image's draws are seeded from its own number, and the generators are put back afterwards.
"""

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.errors import InputError, unknown

Transform = Callable[[Tensor], Tensor]
TRIES = 4  # draws that a transform is tried with before training


class Transforms:
    """A chain of transforms that keep an image's size and type.

    Args:
        texts: the calls, in order.

    Raises:
        InputError: not a call of a known transform with literal arguments.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self._made = [make_transform(text) for text in texts]

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Change every image by its own draws.

        Args:
            images: (B, C, S, S) uint8 or float32.
            seeds: (B,) int64, 0 to 2^32 - 1.

        Returns:
            (B, C, S, S) of the same type.

        Raises:
            InputError: a transform fails, or changes size or type.
        """
        changed = []
        with _own_draws() as seed:
            for image, number in zip(images, seeds.tolist(), strict=True):
                seed(number)
                changed.append(self._apply(image.contiguous()))
        return torch.stack(changed) if changed else images

    def check(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """Try everything on noise of an image's (C, S, S) and type. Raises InputError as a batch would."""
        noise = torch.linspace(0, 1, shape[0] * shape[1] * shape[2]).view(1, *shape)
        noise = (noise * 255).byte() if dtype == torch.uint8 else noise
        self(noise.expand(TRIES, -1, -1, -1), torch.arange(TRIES))

    def _apply(self, image: Tensor) -> Tensor:
        for text, transform in zip(self.texts, self._made, strict=True):
            try:
                out: Any = transform(image)
            except Exception as error:  # other people's code: anything can come
                raise InputError(f"augment.transforms: '{text}' fails on {_form(image)}: {_line(error)}") from error
            if not isinstance(out, Tensor) or out.shape != image.shape or out.dtype != image.dtype:
                raise InputError(
                    f"augment.transforms: '{text}' makes {_form(out)} out of {_form(image)}; "
                    "only transforms that keep size and type can be used"
                )
            image = out.as_subclass(Tensor)
        return image


def make_transform(text: str) -> Transform:
    """A transform from its call as text.

    Args:
        text: such as "RandomRotation(degrees=10)" or "RandomApply([GaussianBlur(3)], p=0.5)".

    Raises:
        InputError: not such a call, an unknown name, or arguments that it refuses.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_a_call(text) from error
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if not isinstance(node, ast.Call):
        raise _not_a_call(text)
    return _call(node, text)


def _call(node: ast.Call, text: str) -> Transform:
    from torchvision.transforms import v2

    known = {name for name, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)}
    known -= {"Transform", "Lambda"}  # the first does nothing, the other wants a function
    if not isinstance(node.func, ast.Name):
        raise _not_a_call(text)
    if node.func.id not in known:
        raise unknown("transform of torchvision.transforms.v2", node.func.id[:200], sorted(known))
    if any(keyword.arg is None for keyword in node.keywords):
        raise _not_a_call(text)
    arguments = [_value(argument, text) for argument in node.args]
    named = {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
    try:
        return getattr(v2, node.func.id)(*arguments, **named)
    except Exception as error:  # other people's code: anything can come
        raise InputError(f"augment.transforms: '{text}' cannot be made: {_line(error)}") from error


def _value(node: ast.expr, text: str) -> Any:
    """A literal, a list, or one more call."""
    if isinstance(node, ast.Call):
        return _call(node, text)
    if isinstance(node, ast.List):
        return [_value(item, text) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise _not_a_call(text) from error


def _not_a_call(text: str) -> InputError:
    return InputError(
        f"augment.transforms: '{text[:200]}' is not the name of a transform with numbers, texts or lists as "
        "arguments, such as 'GaussianBlur(kernel_size=3)'"
    )


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{'x'.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextmanager
def _own_draws() -> Iterator[Callable[[int], None]]:
    """A function that seeds PyTorch's, Python's and NumPy's generators; all are put back at the end."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def seed(number: int) -> None:
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reseed the accelerator too
        random.seed(number)
        np.random.seed(number)

    try:
        yield seed
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
