"""Restricted ImageNet: 203 animal classes of ILSVRC2012 and their nine super-classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from cdvae_ray.config.checks import require
from cdvae_ray.errors import DataError

Labelling = Literal["fine", "super"]
"""fine: a class for each WordNet id. super: a class for each of the nine super-classes."""
LABELLINGS: tuple[Labelling, ...] = get_args(Labelling)


class RestrictedClass(NamedTuple):
    """One of the 203 classes."""

    wordnet_id: str
    """Of the synset, for example n01641577 (bullfrog): the name of its folder in ILSVRC2012."""
    index: int  # type: ignore[assignment]  # hides a tuple's method, as namedtuples do
    """Its place among the sorted WordNet ids of all 1000 classes of ILSVRC2012, in [0, 999]."""
    super_class: str
    """One of SUPER_CLASSES."""


class ClassMap(NamedTuple):
    """How the classes of a dataset become those that are kept of it."""

    class_names: tuple[str, ...]
    """The new names, by new label."""
    new_labels: tuple[int | None, ...]
    """The new label by old label; None where the class is left out."""


# Super-class, ILSVRC2012 index of its first class, WordNet ids: a super-class is one range of the
# index, so that its k-th id has the index first + k.
_RANGES: tuple[tuple[str, int, str], ...] = (
    (
        "dog",
        151,
        """
        n02085620 n02085782 n02085936 n02086079 n02086240 n02086646 n02086910 n02087046 n02087394
        n02088094 n02088238 n02088364 n02088466 n02088632 n02089078 n02089867 n02089973 n02090379
        n02090622 n02090721 n02091032 n02091134 n02091244 n02091467 n02091635 n02091831 n02092002
        n02092339 n02093256 n02093428 n02093647 n02093754 n02093859 n02093991 n02094114 n02094258
        n02094433 n02095314 n02095570 n02095889 n02096051 n02096177 n02096294 n02096437 n02096585
        n02097047 n02097130 n02097209 n02097298 n02097474 n02097658 n02098105 n02098286 n02098413
        n02099267 n02099429 n02099601 n02099712 n02099849 n02100236 n02100583 n02100735 n02100877
        n02101006 n02101388 n02101556 n02102040 n02102177 n02102318 n02102480 n02102973 n02104029
        n02104365 n02105056 n02105162 n02105251 n02105412 n02105505 n02105641 n02105855 n02106030
        n02106166 n02106382 n02106550 n02106662 n02107142 n02107312 n02107574 n02107683 n02107908
        n02108000 n02108089 n02108422 n02108551 n02108915 n02109047 n02109525 n02109961 n02110063
        n02110185 n02110341 n02110627 n02110806 n02110958 n02111129 n02111277 n02111500 n02111889
        n02112018 n02112137 n02112350 n02112706 n02113023 n02113186 n02113624 n02113712 n02113799
        n02113978
        """,
    ),
    (
        "cat",
        281,
        """
        n02123045 n02123159 n02123394 n02123597 n02124075
        """,
    ),
    (
        "frog",
        30,
        """
        n01641577 n01644373 n01644900
        """,
    ),
    (
        "turtle",
        33,
        """
        n01664065 n01665541 n01667114 n01667778 n01669191
        """,
    ),
    (
        "bird",
        80,
        """
        n01795545 n01796340 n01797886 n01798484 n01806143 n01806567 n01807496 n01817953 n01818515
        n01819313 n01820546 n01824575 n01828970 n01829413 n01833805 n01843065 n01843383 n01847000
        n01855032 n01855672 n01860187
        """,
    ),
    (
        "primate",
        365,
        """
        n02480495 n02480855 n02481823 n02483362 n02483708 n02484975 n02486261 n02486410 n02487347
        n02488291 n02488702 n02489166 n02490219 n02492035 n02492660 n02493509 n02493793 n02494079
        """,
    ),
    (
        "fish",
        389,
        """
        n02514041 n02526121 n02536864 n02606052 n02607072 n02640242 n02641379 n02643566 n02655020
        """,
    ),
    (
        "crab",
        118,
        """
        n01978287 n01978455 n01980166 n01981276
        """,
    ),
    (
        "insect",
        300,
        """
        n02165105 n02165456 n02167151 n02168699 n02169497 n02172182 n02174001 n02177972 n02190166
        n02206856 n02219486 n02226429 n02229544 n02231487 n02233338 n02236044 n02256656 n02259212
        n02264363 n02268443
        """,
    ),
)

SUPER_CLASSES: tuple[str, ...] = tuple(super_class for super_class, _, _ in _RANGES)
"""The nine super-classes by super label: dog, cat, frog, turtle, bird, primate, fish, crab, insect,
the order in which the literature lists them."""

RESTRICTED_IMAGENET: tuple[RestrictedClass, ...] = tuple(
    sorted(
        RestrictedClass(wordnet_id, first + place, super_class)
        for super_class, first, wordnet_ids in _RANGES
        for place, wordnet_id in enumerate(wordnet_ids.split())
    )
)
"""All 203 classes, sorted by WordNet id and so by index; the k-th has the fine label k."""

_BY_WORDNET_ID = {each.wordnet_id: each for each in RESTRICTED_IMAGENET}


def restrict_classes(class_names: Sequence[str], labelling: Labelling) -> ClassMap:
    """The restricted classes among a dataset's, and the labels that they get.

    Classes that the dataset lacks get no label, so that labels are 0, 1, ... without gaps. Fine
    labels are in order of the index, super labels in that of SUPER_CLASSES, however the dataset
    orders its classes.

    Args:
        class_names: the dataset's, by label: WordNet ids, among them some that are restricted.
        labelling: fine or super.

    Raises:
        ConfigError: an unknown labelling.
        DataError: a name twice, or none that is a restricted WordNet id.
    """
    require(
        labelling in LABELLINGS,
        "labels",
        got=repr(labelling),
        expected=f"one of {', '.join(LABELLINGS)}",
        remedy="set --labels to one of them",
    )
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise DataError(
            "class names",
            got=f"{repeated[0]} more than once",
            expected="different names",
            remedy="rename or merge these classes",
        )
    kept = sorted(_BY_WORDNET_ID[name] for name in class_names if name in _BY_WORDNET_ID)
    if not kept:
        shown = ", ".join(class_names[:4]) + (", ..." if len(class_names) > 4 else "")
        raise DataError(
            "class names",
            got=f"{len(class_names)}: {shown}" if class_names else "none",
            expected="WordNet ids, some of the 203 of restricted ImageNet such as n01641577",
            remedy="use ILSVRC2012 with WordNet ids as names of its classes, or --classes all",
        )
    names: tuple[str, ...] = tuple(each.wordnet_id for each in kept)
    if labelling == "super":
        present = {each.super_class for each in kept}
        names = tuple(name for name in SUPER_CLASSES if name in present)
    label_of = {name: label for label, name in enumerate(names)}

    def new_label(name: str) -> int | None:
        restricted = _BY_WORDNET_ID.get(name)
        if restricted is None:
            return None
        return label_of[name if labelling == "fine" else restricted.super_class]

    return ClassMap(names, tuple(new_label(name) for name in class_names))
