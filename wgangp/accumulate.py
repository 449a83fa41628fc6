"""Gradient accumulation: a batch is computed in equal parts, one after another, with the memory of one part."""

from collections.abc import Callable

from torch import Tensor

__all__ = ["accumulate_gradients", "check_parts", "split_batch"]

Gradients = tuple[dict[str, Tensor], list[Tensor]]  # terms (), one gradient per parameter: means over a batch


def accumulate_gradients(compute: Callable[..., Gradients], parts: int, *batch: Tensor | None) -> Gradients:
    """Compute the terms and gradients of a batch in equal parts. Their means are those of the whole batch, to rounding.

        terms, gradients = accumulate_gradients(partial(critic_gradients, critic), 4, real, fake, eps, *y)
        descend(critic, gradients, optimizer)

    Batch norm uses the statistics of each part, and what a forward pass updates is updated by every part.

    Args:
        compute: (*batch) -> terms and gradients, which are means over the batch.
        parts: a divisor of the size of the batch. With 1 the result is that of compute, bit for bit.
        batch: tensors with one row per sample, or None.
    """
    if parts == 1:
        return compute(*batch)
    terms, gradients = {}, []
    for i, part in enumerate(split_batch(parts, *batch)):
        new_terms, new_gradients = compute(*part)
        terms = {name: terms[name] + term if i else term for name, term in new_terms.items()}
        gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)] if i else new_gradients
    return {name: term / parts for name, term in terms.items()}, [gradient / parts for gradient in gradients]


def split_batch(parts: int, *batch: Tensor | None) -> list[tuple[Tensor | None, ...]]:
    """Split the rows of all tensors of a batch into equal parts, in order. None stays None.

    Raises:
        ValueError: the tensors do not have the same number of rows, or it is not a multiple of parts.
    """
    sizes = sorted({len(x) for x in batch if x is not None})
    if parts < 1 or len(sizes) != 1 or sizes[0] % parts:
        rows = " and ".join(str(size) for size in sizes)
        raise ValueError(f"a batch with {rows} rows cannot be split into {parts} equal parts: choose another number")
    columns = ((None,) * parts if x is None else x.chunk(parts) for x in batch)
    return list(zip(*columns, strict=True))


def check_parts(parts: int, regularize_gradient_norm: float) -> None:
    """Raise ValueError if gradients of parts of a batch would be averaged and their mean would be wrong."""
    if parts > 1 and regularize_gradient_norm:
        raise ValueError(
            "regularize.gradient_norm does not work with several ranks or with accumulate > 1: the squared norm of a"
            " mean over parts is not a mean over parts, so averaged gradients would be wrong. Use one process and"
            " accumulate=1, or regularize.gradient_norm=0"
        )
