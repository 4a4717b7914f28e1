"""Which attention-like modules of a model were captured, and why the others were not."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from overfocus.attention import AttentionMap

_ATTENTION_WORD = re.compile(r"attn|attention|xca|msa|mhsa|litemla", re.IGNORECASE)
_PART = re.compile(r"drop|norm|proj|bias|pos|softmax|identity|linear|conv|act|layer_?scale|mlp", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """One attention-like module: what its map is, or why there is none."""

    module: str
    kind: str | None
    shape: tuple[int, ...] | None
    """(batch · windows, heads, queries, keys) of its first call."""
    captured: bool = False
    reason: str | None = None
    """Why there is no token attention here; None where there is."""
    class_name: str = ""
    windows: int = 1
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    branch: str | None = None

    @classmethod
    def of(cls, attention: AttentionMap) -> "Site":
        """The row of a captured map."""
        channel = attention.kind == "channel"
        return cls(
            attention.module,
            attention.kind,
            attention.shape,
            captured=True,
            reason="channels attend channels: no token attention, left out of the metrics" if channel else None,
            windows=attention.windows,
            prefix_tokens=attention.prefix_tokens,
            grid=attention.grid,
            key_grid=attention.key_grid,
            branch=attention.branch,
        )

    def row(self) -> dict[str, Any]:
        """The site as plain values for tables and JSON."""
        return asdict(self)


class SiteLog:
    """Collects sites while a model runs, each once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sites: dict[tuple[str, str | None, tuple[int, ...] | None], Site] = {}

    def add(self, site: Site) -> None:
        """Note a site; the same site again changes nothing."""
        shape = site.shape[1:] if site.shape else None
        self._sites.setdefault((site.module, site.kind, shape), site)

    def rows(self, called: set[str]) -> tuple[Site, ...]:
        """Every attention-like module in the model's own order: noted sites, then silent modules with the reason."""
        modules = dict(self._model.named_modules())
        seen = {site.module for site in self._sites.values()}
        order = {name: place for place, name in enumerate(modules)}
        rows = [self._named(site, modules) for site in self._sites.values()]
        for name, module in modules.items():
            if _attention_like(name, module) and not any(_inside(name, other) or _inside(other, name) for other in seen):
                reason = (
                    "no softmax attention ran in it: linear or additive attention, or a kernel of its own"
                    if name in called
                    else "not called in this forward"
                )
                rows.append(
                    Site(name, "unsupported" if name in called else None, None, reason=reason, class_name=type(module).__name__)
                )
                seen.add(name)
        return tuple(sorted(rows, key=lambda site: order.get(site.module, len(order))))

    @staticmethod
    def _named(site: Site, modules: dict[str, nn.Module]) -> Site:
        module = modules.get(site.module)
        return Site(**{**asdict(site), "class_name": type(module).__name__ if module is not None else ""})


def _attention_like(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    if not (_ATTENTION_WORD.search(last) or _ATTENTION_WORD.search(type(module).__name__)) or not name:
        return False
    if _PART.search(last) or isinstance(module, (nn.Identity, nn.Dropout, nn.LayerNorm, nn.Linear, nn.Conv2d)):
        return False
    return any(True for _ in module.parameters())


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(other + ".") or not other
