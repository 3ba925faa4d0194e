"""Every distillation loss by its name."""

from __future__ import annotations

from dataclasses import fields

from threed.distill.csd import CSD
from threed.distill.hifa import HiFA
from threed.distill.ism import ISM
from threed.distill.nfsd import NFSD
from threed.distill.score import Distillation
from threed.distill.sdi import SDI
from threed.distill.sds import SDS
from threed.distill.sjc import SJC
from threed.distill.vsd import BSD, VSD

LOSSES: dict[str, type[Distillation]] = {
    "sds": SDS,
    "sjc": SJC,
    "csd": CSD,
    "nfsd": NFSD,
    "hifa": HiFA,
    "sdi": SDI,
    "ism": ISM,
    "vsd": VSD,
    "bsd": BSD,
}
LEARNING = (VSD, BSD)  # those that train an adapter, which particles share
NEGATIVE = (NFSD,)  # those that need a negative prompt
GUIDED_ANYWAY = (NFSD, CSD, SDI, BSD)  # those that hear a negative prompt at any guidance scale


def hears_negative(loss: Distillation) -> bool:
    """Whether a negative prompt changes anything: at a guidance scale of 1 the prompt alone is asked."""
    return isinstance(loss, GUIDED_ANYWAY) or loss.scale != 1


def instead(loss: Distillation, name: str) -> Distillation:
    """The loss of this name, at the timesteps, the guidance and the weight of another."""
    shared = {each.name: getattr(loss, each.name) for each in fields(Distillation) if each.init}
    return LOSSES[name](**shared)
