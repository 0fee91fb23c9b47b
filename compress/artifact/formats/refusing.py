"""Why a format of other engines cannot hold a student: reasons that several formats share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats.matrix import Scheme

REMEDY = "Use artifact.format: packed, or change the recipe."


def messages(format: str, reasons: Iterator[str]) -> list[str]:
    """Each reason as a whole message."""
    return [f"artifact.format {format}: {reason}. {REMEDY}" for reason in reasons]


def widths(schemes: Mapping[str, Scheme], held: Sequence[int]) -> Iterator[str]:
    """Widths of codes that the readers of a format do not take."""
    told = " and ".join(map(str, held))
    for bits in sorted({scheme.bits for scheme in schemes.values()} - set(held)):
        names = [name for name, scheme in schemes.items() if scheme.bits == bits]
        yield f"{names[0]}{more(names)}: {bits} bits; its readers take {told}"


def embedding(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """A quantized embedding, where only linears can be."""
    if anatomy.embedding in schemes:
        tied = " (tied to the head)" if anatomy.tied else ""
        yield f"{anatomy.embedding}: a quantized embedding{tied}; only linears can be quantized"


def conv1d(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Linears that lie turned."""
    turned = [linear.name for linear in anatomy.linears if linear.transposed]
    if quantized := [name for name in turned if name in schemes]:
        yield (
            f"{quantized[0]}{more(quantized)}: {anatomy.model_type} keeps its weights in Conv1D "
            "modules; its readers quantize nn.Linear only"
        )


def fusions(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Linears that serving engines fuse, of unequal schemes."""
    for block in anatomy.blocks:
        fused: dict[str, list[Linear]] = {}
        for linear in block.linears:
            if linear.fused:
                fused.setdefault(linear.fused, []).append(linear)
        for linears in fused.values():
            if len({schemes.get(linear.name) for linear in linears}) > 1:
                names = ", ".join(linear.name.rpartition(".")[2] for linear in linears)
                yield (
                    f"{block.prefix}: {names} are fused by serving engines and must share one "
                    "scheme or all be dense"
                )


def uneven(anatomy: Anatomy) -> Iterator[str]:
    """Blocks of different widths, which its readers cannot build."""
    each = anatomy.channels
    if other := next((i for i, channels in enumerate(each) if channels != each[0]), 0):
        yield (
            f"{anatomy.blocks[other].prefix}: an MLP of {each[other]} channels, and {each[0]} in "
            "the first block; its readers build all blocks alike (restructure with uniform: true)"
        )


def beyond_integers(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Schemes that say more than codes, scales and zeros: floating codes, rounded inputs."""
    odd = [n for n, s in schemes.items() if s != Scheme(s.bits, s.group_size, s.sym)]
    if odd:
        yield f"{odd[0]}{more(odd)}: more than integer codes and scales; it holds nothing else"


def rounded_inputs(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Linears that round their inputs, where nothing can say so."""
    if odd := [name for name, scheme in schemes.items() if scheme.inputs is not None]:
        yield f"{odd[0]}{more(odd)}: rounds inputs, and nothing there tells readers to"


def more(names: Sequence[str]) -> str:
    """How many come after the first."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
