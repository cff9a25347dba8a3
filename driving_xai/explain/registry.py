"""Explainers by their literature names; importing this imports no explainer and nothing heavy."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from driving_xai.errors import FrameSizeError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from driving_xai.explain.base import Explainer
    from driving_xai.explain.options import OptionsOf

ENTRY_POINTS = "driving_xai.explainers"
"""The group under which an installed package offers explainers of its own."""
_NONE: Mapping[str, Any] = MappingProxyType({})


class Entry(NamedTuple):
    """Where an explainer is defined.

    Example:
        >>> METHODS["gradient-x-input"].target, dict(METHODS["gradient-x-input"].preset)
        ('driving_xai.explain.gradient:Gradient', {'times': 'input'})
    """

    target: str
    """`module:Class`."""
    preset: Mapping[str, Any] = _NONE
    """Options that the name stands for; they are no options of the method any more."""
    inner: Mapping[str, str | Entry] = _NONE
    """Options that are explainers themselves, by name or entry; theirs are options of the method too."""
    aliases: Mapping[str, str] = _NONE
    """Other names of options, which earlier versions took, with today's."""


def _entry(target: str, **preset: Any) -> Entry:
    return Entry(f"driving_xai.explain.{target}", MappingProxyType(preset))


def _own_map(name: str) -> Entry:
    return _entry("attention:LearnedMap", map=name)


def _filtered(name: str) -> Entry:
    return _entry("causal_filter:CausalFilter")._replace(inner={"attention": name})


def _heavier_side(signed: str | Entry) -> Entry:
    return _entry("gradient:HeavierSide")._replace(inner={"signed": signed})


_ATTENTION_IG = _entry("attention:AttentionWeighted")._replace(inner={"explainer": "integrated-gradients"})
_BY_FAMILY: Mapping[str, Mapping[str, Entry]] = {
    "attention of the model": {
        **{name: _own_map(name) for name in ("sign-attention", "soft-attention", "bla", "bla-hard", "l2x-f")},
        "sign-attention-filtered": _filtered("sign-attention"),
        "soft-attention-filtered": _filtered("soft-attention"),
        "lambda-attention": _own_map("lambda-attention"),
        "labn": _own_map("labn"),
    },
    "class activation maps": {
        "grad-cam": _entry("cam:GradCAM"),
        "grad-cam++": _entry("cam:GradCAMPlusPlus"),
        "smooth-grad-cam++": _entry("cam:SmoothGradCAMPlusPlus")._replace(aliases={"deviation": "noise_std"}),
        "xgrad-cam": _entry("cam:XGradCAM"),
        "attention-guided-cam": _entry("cam:AttentionGuidedCAM"),
    },
    "gradients": {
        "gradient": _entry("gradient:Gradient", times="one"),
        "gradient-x-input": _entry("gradient:Gradient", times="input"),
        "smoothgrad": _entry("gradient:SmoothGrad")._replace(aliases={"sigma": "noise_std"}),
        "integrated-gradients": _entry("gradient:IntegratedGradients")._replace(aliases={"baseline": "fill"}),
        "heavier-side-ig": _heavier_side("integrated-gradients"),
        "heavier-side-attention-ig": _heavier_side(_ATTENTION_IG),
        "removal-pursuit": _entry("removal_pursuit:RemovalPursuit"),
    },
    "perturbation": {
        "occlusion": _entry("perturbation:Occlusion"),
        "rise": _entry("perturbation:RISE")._replace(aliases={"masks": "samples"}),
        "lime": _entry("lime:LIME"),
    },
    "feature maps": {"visual-backprop": _entry("visual_backprop:VisualBackProp")},
    "vision transformers": {
        "raw-attention": _entry("vit.flow:RawAttention"),
        "rollout": _entry("vit.flow:Rollout"),
        "attention-gradient": _entry("vit.flow:AttentionGradient"),
        "norm-attention": _entry("vit.flow:NormAttention"),
        "generic-attention": _entry("vit.flow:GenericAttention"),
        "attention-ig": _entry("vit.smoothing:AttentionIG"),
        "snna": _entry("vit.smoothing:SNNA")._replace(aliases={"noise": "noise_std"}),
    },
    "baselines": {
        "random": _entry("baselines:RandomOrder"),
        "centre-prior": _entry("baselines:CentrePrior"),
    },
}
METHODS: Mapping[str, Entry] = {name: each for family in _BY_FAMILY.values() for name, each in family.items()}
"""By name, in the order in which they are listed."""
FAMILIES: Mapping[str, tuple[str, ...]] = {family: tuple(entries) for family, entries in _BY_FAMILY.items()}
"""The names of each family."""


def build(name: str, *, seed: int = 0, batch_size: int = 32, **options: Any) -> Explainer:
    """The explainer of a literature name.

    Args:
        name: of `METHODS`; or `LIBRARY:METHOD` (captum, grad-cam, zennit, lxt), an entry point of
            `driving_xai.explainers`, or `module:Class` of a class of one's own. Behind an `@` may stand a
            label, which says what its options are for.
        seed: for methods that draw; the others ignore it.
        batch_size: for methods that run many edited frames: the most in one pass, but never fewer than
            one of every frame; see `perturb.batches`.
        options: the explainer's own; see its class, and `options_of`.

    Raises:
        OptionError: the method has no such option, or it does not take the value.
        ValueError: no method has that name; the message lists those there are.

    Example:
        >>> build("rise", samples=500, normalisation="observed").samples
        500
    """
    base = without_label(name)
    if base not in METHODS:
        from driving_xai.explain.adapters import load_explainer

        return load_explainer(base, of_run={"seed": seed, "batch_size": batch_size}, **options)
    try:
        chosen = _checked(name, METHODS[base], options)
        return _made(METHODS[base], {"seed": seed, "batch_size": batch_size}, chosen)
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(f"method {name!r}: {error}") from None


def fitted(
    name: str, model: object, *, seed: int = 0, batch_size: int = 32, options: Mapping[str, Any] | None = None
) -> Explainer:
    """What `build` makes, after a check that it fits this model.

    Args:
        model: the whole model or its view of one instant, on the device that it will run on.
        options: the explainer's own, by name.

    Raises:
        UnsupportedModelError: the model lacks what the method needs; the message says what, and what to do.
        OptionError: see `build`; ValueError likewise.
    """
    from driving_xai.models.capabilities import declared_size, sample_frames

    explainer = build(name, seed=seed, batch_size=batch_size, **(options or {}))
    sample = sample_frames(model)
    try:
        explainer.check(model, sample)
    except FrameSizeError as error:
        # A plain network may take frames of another size than the sample's, and says so when it is called.
        if declared_size(model) is not None:
            raise FrameSizeError(f"{name}: {error}") from error
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name}: {error}") from error
    return explainer


def options_of(name: str) -> dict[str, Any]:
    """The options of a method that text can say, with their types; empty for what is found outside `METHODS`.

    Example:
        >>> list(options_of("heavier-side-ig"))
        ['fill', 'steps', 'rule', 'channels', 'max_gap', 'baseline', 'share']
    """
    entry = METHODS.get(without_label(name))
    return {} if entry is None else _types(entry)


def explainer_class(entry: Entry) -> Callable[..., Explainer]:
    """The class that an entry names."""
    return resolve_name(entry.target)


def summary(name: str) -> str:
    """What a method is: the first line of its class's documentation."""
    return (inspect.getdoc(explainer_class(METHODS[name])) or "").partition("\n")[0]


def _inner(entry: Entry) -> dict[str, Entry]:
    return {name: METHODS[each] if isinstance(each, str) else each for name, each in entry.inner.items()}


def _own_types(entry: Entry) -> dict[str, Any]:
    """Without those of explainers inside."""
    from driving_xai.explain.options import sayable_options

    own = sayable_options(explainer_class(entry))
    return {name: hint for name, hint in own.items() if name not in (*entry.preset, *entry.inner)}


def _types(entry: Entry) -> dict[str, Any]:
    found = _own_types(entry)
    for each in _inner(entry).values():
        found = {**_types(each), **found}
    return {**found, **{alias: found[name] for alias, name in entry.aliases.items()}}


def _aliases(entry: Entry) -> dict[str, str]:
    found = dict(entry.aliases)
    for each in _inner(entry).values():
        found |= _aliases(each)
    return found


def _checked(name: str, entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under today's names; what is an object, a layer say, is passed on as it is."""
    from driving_xai.explain.options import checked, is_sayable

    takes = inspect.signature(explainer_class(entry)).parameters
    objects = {
        key: value
        for key, value in options.items()
        if key in takes and key not in entry.preset and not is_sayable(value)
    }
    for key, inner in _inner(entry).items():
        own = _own_types(entry)
        if key in objects and (
            lost := [each for each in options if each in _types(inner) and each not in own]
        ):
            raise OptionError(
                f"options.{name}.{lost[0]} is an option of {key}, which is given as an object; set it there"
            )
    text = {key: value for key, value in options.items() if key not in objects}
    return todays_names(name, {**objects, **checked(name, text, _types(entry))})


def todays_names(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options under the names that its class has, where earlier versions had others.

    Raises:
        OptionError: an option is given under both.

    Example:
        >>> todays_names("rise", {"masks": 500})
        {'samples': 500}
    """
    aliases = _aliases(METHODS[without_label(name)])
    for alias in options:
        if aliases.get(alias) in options:
            raise OptionError(
                f"options.{name} has {alias} and {aliases[alias]}, which are one option; give one"
            )
    return {aliases.get(option, option): value for option, value in options.items()}


def _made(entry: Entry, of_run: Mapping[str, Any], chosen: Mapping[str, Any]) -> Explainer:
    explainer = explainer_class(entry)
    takes = inspect.signature(explainer).parameters
    inner = {name: _made(each, of_run, chosen) for name, each in _inner(entry).items() if name not in chosen}
    given = {name: value for name, value in {**of_run, **chosen}.items() if name in takes}
    return explainer(**{**given, **inner, **entry.preset})


_LABELLED = re.compile(r"[^@]+@[A-Za-z0-9_-]{1,40}")
"""A label is part of files' names."""


def require_methods(
    names: Sequence[str], options: OptionsOf, *, least: int = 1, also: Sequence[str] = ()
) -> None:
    """Checks the methods of a run and their options before there is a model.

    Args:
        least: how many there must be.
        also: names that run in any case and have options too.

    Raises:
        ValueError: a method is unknown, or named twice; the message says what is possible.
        OptionError: options are of no method named, unknown, or of another type.
    """
    from driving_xai.explain.options import require_tables

    if wrong := [each for each in names if "@" in each and not _LABELLED.fullmatch(each)]:
        raise ValueError(
            f"got method {wrong[0]!r}; expected a label of up to 40 letters, digits, - and _ after one @"
        )
    unknown = [each for each in names if not _known(without_label(each))]
    if unknown or len(names) < least:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(
            f"got method {got}, expected some of: {', '.join(METHODS)}{near_method(*unknown[:1])}"
        )
    if twice := [each for each in names if names.count(each) > 1]:
        raise ValueError(
            f"got method {twice[0]!r} twice, expected each once; with other options call it {twice[0]}@LABEL"
        )
    require_tables(options, dict.fromkeys([*names, *also]))
    for name in names:
        if without_label(name) not in METHODS:
            build(name, **options.get(name, {}))
    for name, given in options.items():
        if without_label(name) in METHODS:
            _checked(name, METHODS[without_label(name)], given)


def near_method(name: str = "") -> str:
    """The end of a message about an unknown method: the name that was meant, or its class's, or nothing.

    Example:
        >>> near_method("GradCAM"), near_method("integrated-gradient"), near_method("xyz")
        ('; did you mean grad-cam?', '; did you mean integrated-gradients?', '')
    """
    by_class = {entry.target.rpartition(":")[2]: method for method, entry in reversed(list(METHODS.items()))}
    names = {
        **{each.lower(): method for each, method in by_class.items()},
        **{each: each for each in METHODS},
    }
    near = difflib.get_close_matches(without_label(name).lower(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def _known(base: str) -> bool:
    return base in METHODS or ":" in base or bool(entry_points(group=ENTRY_POINTS, name=base))


def without_label(name: str) -> str:
    """`snna` of `snna@literal`: one method may run several times in one run, with other options."""
    return name.partition("@")[0]
