"""A model that stands at a point, whatever happens to its own tensors later."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscapex.curvature.replacements import Replacements
from landscapex.engine.onednn import without_onednn
from landscapex.engine.precision import precision_context
from landscapex.errors import LossError, ModelChangedError
from landscapex.model.parameters import ParameterSpace

_HALF = (torch.float16, torch.bfloat16)
_CACHED = ("_flat_weights", "_flat_weight_refs")  # of recurrent layers, formed from parameters
# how torch and authors of functions say that something has no second derivative
_NO_SECOND = ("derivative for", "differentiate twice", "double backward")


@dataclass(frozen=True)
class _Slot:
    """Where a module keeps a tensor, and our copy of that tensor."""

    module: nn.Module
    table: str  # "_parameters" or "_buffers"
    name: str
    copy: Tensor
    leaf: bool  # whether derivatives are taken by it

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """The table as it is now."""
        return getattr(self.module, self.table)


class Standing:
    """Copies of all tensors of a model as they are now, which its modules use on request.

    Parameters of 16 bits are copied to float32. Use it while nobody else uses the model.

    Args:
        space: The parameters that derivatives are taken by.

    Attributes:
        leaves: One copy per chosen parameter, in the order of the flat vector.
        widened: Whether any parameter had 16 bits.
        lendable: Whether the modules keep their tensors where they can be exchanged.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.model = space.model
        self.leaves = [_copied(p).requires_grad_() for p in space.parameters]
        copies = {
            id(p): self.leaves[space.names[name]]
            for name, p in self.model.named_parameters(remove_duplicate=False)
            if name in space.names
        }
        chosen = set(copies)
        self._slots = []
        for module, table, name, tensor in _slots(self.model):
            if id(tensor) not in copies:
                copies[id(tensor)] = _copied(tensor)
            copy, leaf = copies[id(tensor)], id(tensor) in chosen
            self._slots.append(_Slot(module, table, name, copy, leaf))
        self._structure = _structure(self.model)
        self.widened = any(p.dtype in _HALF for p in self.model.parameters())
        self.lendable = all(
            isinstance(getattr(m, table), dict)
            for m in self.model.modules()
            for table in ("_parameters", "_buffers")
        )

    def memory(self) -> set[int]:
        """Where the copies lie, for those who count what else is kept."""
        return {_place(slot.copy) for slot in self._slots}

    @contextlib.contextmanager
    def lent(self) -> Iterator[list[Tensor]]:
        """Let the modules use the copies; what is computed meanwhile may be kept.

        Buffers are copied once more, so that nothing that is kept depends on what is written to
        them.

        Yields:
            The leaves.

        Raises:
            ModelChangedError: If the model has got other modules or parameters since.
        """
        self._check_structure()
        fresh: dict[int, Tensor] = {}
        taken: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        cached = [
            (m, {name: m.__dict__[name] for name in _CACHED if name in m.__dict__})
            for m in self.model.modules()
            if isinstance(m, nn.RNNBase)
        ]
        try:
            for slot in self._slots:
                copy = slot.copy
                if slot.table == "_buffers":
                    copy = fresh.setdefault(id(copy), copy.clone())
                taken.append((slot.tensors, slot.name, slot.tensors[slot.name]))
                slot.tensors[slot.name] = copy
            yield self.leaves
        finally:
            for tensors, name, own in taken:
                tensors[name] = own
            for module, attributes in cached:
                module.__dict__.update(attributes)

    @contextlib.contextmanager
    def exchanged(self) -> Iterator[list[Tensor]]:
        """Give the model's own tensors the memory of the copies; nothing computed may be kept.

        This also moves what holds a parameter itself and not its module.

        Yields:
            The model's own parameters, in the order of the leaves.

        Raises:
            ModelChangedError: If the model has got other modules or parameters since.
        """
        self._check_structure()
        taken: dict[int, tuple[Tensor, Tensor, bool]] = {}
        own: dict[int, Tensor] = {}
        doubles: list[tuple[_Slot, Tensor]] = []
        try:
            for slot in self._slots:
                live = slot.tensors[slot.name]
                assert live is not None  # the structure was checked
                first = own.setdefault(id(slot.copy), live)
                if first is not live:  # two tensors that view the same memory
                    doubles.append((slot, live))
                    slot.tensors[slot.name] = first
                if first is not live or id(live) in taken:
                    continue
                taken[id(live)] = live, live.data, live.requires_grad
                copy = slot.copy.detach()
                live.data = copy.clone() if slot.table == "_buffers" else copy
                if slot.leaf:
                    live.requires_grad_(True)
            yield [own[id(leaf)] for leaf in self.leaves]
        finally:
            for slot, live in doubles:
                slot.tensors[slot.name] = live
            for live, data, requires_grad in taken.values():
                live.data = data
                live.requires_grad_(requires_grad)

    def _check_structure(self) -> None:
        if _structure(self.model) != self._structure:
            raise ModelChangedError(
                "the model must have the modules and parameters that it had when its curvature was "
                "linearised, got others. Make the operator anew."
            )


@contextlib.contextmanager
def twice_differentiable(
    model: nn.Module, precision: str, device: torch.device, *, fixed: bool
) -> Iterator[None]:
    """Kernels that have (right and fast) second derivatives; no autocast; gradients switched on.

    The fused kernels of attention and of recurrent layers have none; the plain ones compute the
    same. Others are replaced by `Replacements`.

    Args:
        model: Whose layers are asked for.
        precision: Of the objective; ``"bf16"`` counts as ``"fp32"``.
        device: Of the model.
        fixed: Whether gradients are differentiated by their cotangents alone.

    Yields:
        Nothing.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(own_arithmetic(precision, device))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(without_onednn())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # what it compiles cannot be differentiated twice
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(Replacements(fixed=fixed))
        yield


def arithmetic(precision: str) -> str:
    """The precision that derivatives are taken in, for one of an objective."""
    return "fp32" if precision == "bf16" else precision


@contextlib.contextmanager
def own_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """No autocast, and the precision of the objective, whatever the caller has switched on.

    A backward pass follows the switches of its own time, not those under which its graph was made:
    products with graphs that are kept need this, too.

    Args:
        precision: Of the objective; ``"bf16"`` counts as ``"fp32"``.
        device: Of the model.

    Yields:
        Nothing.
    """
    with (
        torch.autocast(device.type, enabled=False),
        precision_context(arithmetic(precision), device),
    ):
        yield


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say in words what a loss without second derivatives lacks.

    Raises:
        LossError: In place of torch's own error.
        RuntimeError: Any other, as it was.
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        if not any(words in str(error) for words in _NO_SECOND):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise LossError(
            f"the loss must be twice differentiable for its curvature, got: {reason}. Write that "
            "part of the model or the loss with functions of torch that are."
        ) from error


def widened(leaf: object) -> object:
    """A tensor of a batch, in float32 if it had 16 bits; anything else as it is."""
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in _HALF else leaf


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone().resolve_conj().resolve_neg()
    return copy.float() if copy.dtype in _HALF else copy


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    for module in model.modules():
        for table in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, table).items():
                if tensor is not None:
                    yield module, table, name, tensor


def _structure(model: nn.Module) -> list[tuple[object, ...]]:
    return [(id(m), table, name, t.shape) for m, table, name, t in _slots(model)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
