"""Which attention-like modules of a model were captured, and why the others were not."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

from overfocus.attention import AttentionMap

_ATTENTION_WORD = re.compile(r"attn|attention|xca|msa|mhsa|litemla", re.IGNORECASE)
_PART = re.compile(r"drop|norm|proj|bias|pos|softmax|identity|linear|conv|act|layer_?scale|mlp", re.IGNORECASE)


_ELSEWHERE = "ran in another thread: capture sees only the thread that opened it"
_NOT_CALLED = "not called in this forward"
_UNSEEN = "tensors were made elsewhere, in another thread, say, or by a compiled extension: attention there is not seen"


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
    note: str | None = None
    """What is unknown of a captured map, or counts in its metrics beside patches: "no grid", padding."""
    class_name: str = ""
    windows: int = 1
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    branch: str | None = None
    frames: int = 1

    @classmethod
    def of(cls, attention: AttentionMap, note: str | None = None) -> "Site":
        """The row of a captured map."""
        reason = None
        if attention.kind == "channel":
            reason = "channels attend to channels: no token attention, left out of the metrics"
        elif attention.kind == "unlabelled":
            reason, note = f"left out of the metrics: {note}", None
        return cls(
            attention.module,
            attention.kind,
            attention.shape,
            captured=True,
            reason=reason,
            note=note,
            windows=attention.windows,
            prefix_tokens=attention.prefix_tokens,
            grid=attention.grid,
            key_grid=attention.key_grid,
            branch=attention.branch,
            frames=attention.frames,
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
        """Note a site; the same site again changes nothing but what is noted of it."""
        shape = site.shape[1:] if site.shape else None
        known = self._sites.setdefault((site.module, site.kind, shape), site)
        if site.note is not None and known.note is None:
            self._sites[site.module, site.kind, shape] = replace(known, note=site.note)

    def rows(self, called: set[str], elsewhere: set[str], other: Mapping[str, str], *, strangers: bool) -> tuple[Site, ...]:
        """Every attention-like module in the model's own order: noted sites, then silent modules with the reason.

        `called` are the modules that ran, `elsewhere` those that ran in another thread, `other` what is known of modules whose
        weights are no softmax; `strangers` whether the model used tensors that were made where capture does not see it.
        """
        modules = dict(self._model.named_modules())
        seen = {site.module for site in self._sites.values()}
        if isinstance(self._model, GraphModule) and seen:
            seen.add("")  # the operators of a graph are all its own
        order = {name: place for place, name in enumerate(modules)}
        rows = [self._named(site, modules) for site in self._sites.values()]
        compiled = [name for name, module in modules.items() if isinstance(module, (ScriptModule, GraphModule))]
        for name in [*compiled, *modules]:
            module = modules[name]
            graph = name in compiled
            if not graph and not _attention_like(name, module):
                continue
            if any(_inside(name, site) or _inside(site, name) for site in seen):
                continue
            reason = _silence(name, module, called, elsewhere, other)
            rows.append(
                Site(name, "unsupported" if name in called else None, None, reason=reason, class_name=type(module).__name__)
            )
            seen.add(name)
        for name in sorted(elsewhere):  # modules without attention by name, as a whole
            if name not in called and not any(_inside(name, site) or _inside(site, name) for site in seen if site):
                rows.append(Site(name, None, None, reason=_ELSEWHERE, class_name=type(modules[name]).__name__))
                seen.add(name)
        for name, reason in other.items() if not self._sites else ():  # of a model without attention modules by name
            if not any(_inside(name, site) for site in seen if site or not name):
                rows.append(Site(name, "unsupported", None, reason=reason, class_name=type(modules[name]).__name__))
        if strangers and all(site.captured or site.kind == "gating" or site.reason == _NOT_CALLED for site in rows):
            rows.append(Site("", None, None, reason=_UNSEEN, class_name=type(self._model).__name__))
        return tuple(sorted(rows, key=lambda site: order.get(site.module, len(order))))

    @staticmethod
    def _named(site: Site, modules: dict[str, nn.Module]) -> Site:
        module = modules.get(site.module)
        return Site(**{**asdict(site), "class_name": type(module).__name__ if module is not None else ""})


def _silence(name: str, module: nn.Module, called: set[str], elsewhere: set[str], other: Mapping[str, str]) -> str:
    """Why a module gave no map."""
    if isinstance(module, ScriptModule):
        return "TorchScript runs outside Python, where nothing can be observed: capture the module that it was made from"
    if isinstance(module, GraphModule) and name in called:
        return "an exported or traced graph in which no softmax attention was found"
    inside = next((reason for site, reason in other.items() if _inside(site, name)), None)
    if inside is not None:
        return inside
    if name in called:
        return "no softmax attention ran in it: linear or additive attention, a custom kernel, or another thread"
    if any(_inside(site, name) for site in elsewhere):
        return _ELSEWHERE
    return _NOT_CALLED


def _attention_like(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    if not (_ATTENTION_WORD.search(last) or _ATTENTION_WORD.search(type(module).__name__)) or not name:
        return False
    if _PART.search(last) or isinstance(module, (nn.Identity, nn.Dropout, nn.LayerNorm, nn.Linear, nn.Conv2d)):
        return False
    return any(True for _ in module.parameters())


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(other + ".") or not other
