"""Measurements on a live model, as data frames.

Nothing of the model changes: weights, buffers, modes, ``.grad``, hooks and the random state stay.
``inputs`` are one argument, a tuple of several, or a dict of keywords. What is no model, lacks
arguments, mixes samples where each counts by itself, or has no join, is refused: AnalyzerError.
Splits, lesions, counterfactuals and curvature are of a batch's mean loss, the Jacobian is of all
its outputs: no sample counts by itself there, and a model that mixes them is measured as it is.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from torch import Tensor, nn

from analyzer.joins.backward import splits_of_model
from analyzer.joins.find import expect_joins
from analyzer.joins.model_state import unwrapped
from analyzer.probes import attribution, curvature, jacobian, lesion, noise, shattering
from analyzer.probes.activations import evaluating
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.curvature import sharpness
from analyzer.probes.paths import path_lengths

__all__ = [
    "gradient_autocorrelation",
    "gradient_correlation",
    "gradient_noise_scale",
    "gradient_splits",
    "hessian_spectrum",
    "jacobian_spectrum",
    "layer_attribution",
    "lesion_study",
    "loss_surface",
    "path_spectrum",
    "sharpness",
]


def gradient_splits(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> pd.DataFrame:
    """Return how the gradient splits at every residual join of a model, for one batch.

    At a join ``z = s + b`` with fork ``x``: ``g_s`` is the part of ∂L/∂x that arrives through the
    shortcut, ``g_b`` the part through the branch, each taken at the edges by which it reads the
    fork. ``shortcut_share = (ss + sb) / (ss + 2 sb + bb)`` of their dot products.

    Args:
        model: Any eager model, used in the mode it is in.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        targets: What ``loss`` compares the output with.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        One row a join, in forward order: ``join``, then the columns of ``splits``; null where the
        backward pass computed nothing.

    Reference:
        He et al. (2016), Identity mappings in deep residual networks, equation 5.
    """
    splits = splits_of_model(model, inputs, targets, loss)
    expect_joins(model, len(splits["join"]))
    return pd.DataFrame(splits).astype({"join": "int32"})


def gradient_correlation(model: nn.Module, inputs: Any) -> pd.DataFrame:
    """Return how alike the gradients of different inputs are, at every layer (shattering).

    The mean cosine, uncentered, over all pairs of inputs, of ∂(sum of outputs)/∂(activation).
    1 where all inputs have one direction; near 0 where gradients are shattered.

    Args:
        model: Any eager model, in its mode; batch norms that train have the batch's statistics.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.

    Returns:
        One row a layer, in call order: ``layer``, ``name``, ``correlation`` (NaN where fewer than
        two inputs have a gradient). ``attrs``, in JSON: ``correlation_low``, ``correlation_high``,
        the 95 % interval over inputs; ``references``, the curves 1/2^L (``plain``), (3/4)^L
        (``residual``) and 1/√L (``residual_norm``).

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem, sections 2 and 3.
    """
    found = shattering.correlation_of_samples(model, inputs)
    return shattering.frame_of(Measurement(found.columns(), shattering.metadata(found)))


def gradient_autocorrelation(model: nn.Module, grid: Tensor, max_lag: int = 15) -> pd.DataFrame:
    """Return the autocorrelation of a model's gradient along a line of inputs.

    White noise (0 from lag 1 on) where gradients are shattered, slow decay where they are smooth.

    Args:
        model: Any eager model, used in the mode it is in.
        grid: Inputs evenly spaced on a line, ``[points, …]``.
        max_lag: Largest distance in grid points.

    Returns:
        ``lag``, ``autocorrelation`` (NaN for a constant gradient).

    Raises:
        ValueError: If the grid has fewer than ``max_lag + 2`` points, or is not a line.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem, section 1.2.
    """
    values = shattering.gradient_autocorrelation(model, grid, max_lag)
    return pd.DataFrame({"lag": range(len(values)), "autocorrelation": values})


def path_spectrum(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor],
    batch_dim: int = 0,
) -> pd.DataFrame:
    """Return how much gradient is carried by paths that cross k residual branches, exactly.

    ``G_k`` is the gradient at the fork of the first join (of nested ones the outermost; without
    joins, at the input) carried by all paths that cross k branches: at every join ``G_k ←
    G_k(through shortcut) + Jᵀ G_{k−1}(through branch)``. Σ_k G_k is the gradient. A concatenation
    is the sum of its operands, padded with zeros.

    Args:
        model: Any eager model, without dropout, frozen parts with gradient; batch norms in
            training mode have the statistics of the batch, as constants.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        targets: What ``loss`` compares the output with.
        loss: ``loss(output, target)``, the mean over the batch.
        batch_dim: The axis of inputs and outputs that counts samples.

    Returns:
        One row a length, from 0 to the number of branches: ``length``; ``num_paths``, exact up to
        2^53; ``gradient_norm``, the mean over samples of ‖G_k‖ of the sample's own loss; ``share``,
        the mean over samples of ⟨G_k, G⟩/‖G‖², which adds to 1, null where all samples have G = 0.
        ``attrs``: ``effective_path_length``, Σ k‖G_k‖ / Σ ‖G_k‖; ``stream_shares``, and the extreme
        singular values of what all shortcuts do: ``shortcut_gain_largest``, ``_smallest``.

    Raises:
        PathsError: If the spectrum cannot be exact, with the reason: the model mixes samples or has
            another batch axis, joins cannot be seen, the first fork has no gradient.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    spectrum = path_lengths(HeldBatch(model, inputs, targets, loss), batch_dim)
    expect_joins(model, len(spectrum.lengths) - 1)
    frame = pd.DataFrame(
        {
            "length": pd.Series(spectrum.lengths, dtype="int32"),
            "num_paths": [float(number) for number in spectrum.num_paths],
            "gradient_norm": spectrum.gradient_norms,
            "share": spectrum.shares or [math.nan] * len(spectrum.lengths),
        }
    )
    frame.attrs["effective_path_length"] = spectrum.effective_path_length
    frame.attrs |= spectrum.streams.notes()
    return frame


def jacobian_spectrum(model: nn.Module, inputs: Any, k: int = 10) -> pd.DataFrame:
    """Return singular values of ∂(block output)/∂(block input), per block and for the network.

    A block reaches from the fork of a residual join to what the join returns. Values near 1 pass
    gradients on unchanged; a wide spread is bad conditioning.

    Args:
        model: Any eager model, evaluated in eval mode.
        inputs: Where it is taken, all samples at once (independent ones make it block-diagonal); a
            tuple for several arguments, a dict for keyword arguments.
        k: How many from the top and from the bottom; all where the smaller side has at most 256
            elements.

    Returns:
        ``name`` (of the join; ``network`` end to end), ``rank_order`` (0 for the largest),
        ``singular_value`` (unit of output / unit of input). ``attrs["residuals"]`` holds, as JSON,
        how far values found by iteration may be off, ``attrs["refused"]`` blocks without values.

    Raises:
        ValueError: If k is not positive, or the output holds no tensor with a gradient.

    Reference:
        Saxe et al. (2013), Exact solutions to the nonlinear dynamics of learning in deep linear
        neural networks; Pennington et al. (2017), Resurrecting the sigmoid.
    """
    found = jacobian.jacobian_spectrum(model, inputs, k)
    columns = {"name": found.names, "rank_order": found.orders, "singular_value": found.values}
    frame = pd.DataFrame(columns).astype({"rank_order": "int32", "singular_value": "float64"})
    frame.attrs.update(jacobian.metadata(found))
    return frame


def hessian_spectrum(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    k: int = 5,
    *,
    num_vectors: int = 8,
    num_steps: int = 24,
) -> pd.DataFrame:
    """Return the largest eigenvalues of the Hessian of the mean loss, its trace and its density.

    Lanczos for the eigenpairs, Hutchinson's trace, stochastic Lanczos quadrature for the density.

    Args:
        model: Any eager model, evaluated in eval mode; frozen parameters are left out.
        batches: Pairs of (input, target); losses are weighted by batch size.
        loss: ``loss(output, target)``, the mean over the batch.
        k: How many eigenpairs.
        num_vectors: Random vectors for trace and density.
        num_steps: Products with the Hessian for each of them.

    Returns:
        ``quantity``, ``value`` in loss / (unit of θ)²: ``sharpness``, ``eigenvalue_0`` …, falling,
        ``smallest_eigenvalue``, ``trace``, ``trace_standard_error``, ``trace_low``, ``trace_high``
        (95 %, Student's t). ``attrs["eigenvectors"]``: the directions (parameter name to tensor);
        ``attrs["density"]``: the whole spectrum as weighted points, in JSON.

    Raises:
        ValueError: If there is no batch or parameter, a count is not positive, the loss no number.
        AnalyzerError: If an operation has no second derivative.

    Reference:
        Ghorbani et al. (2019), An investigation into neural net optimization via Hessian
        eigenvalue density.
    """
    found = curvature.hessian_spectrum(
        model, batches, loss, k, num_vectors=num_vectors, num_steps=num_steps
    )
    quantities = found.quantities()
    frame = pd.DataFrame({"quantity": list(quantities), "value": list(quantities.values())})
    frame.attrs.update(curvature.metadata(found), eigenvectors=found.eigenvectors)
    return frame


def loss_surface(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    directions: Any,
    alphas: Any,
    betas: Any = None,
    **options: Any,
) -> pd.DataFrame:
    """Return the loss over a plane, or along a line, through a model's weights.

    ``L(θ* + α d₁ + β d₂)``, the mean over the batches weighted by their sizes. NaN and
    infinite losses are kept.

    Args:
        model: Any eager model, evaluated in eval mode.
        batches: Pairs ``(input, target)``.
        loss: ``loss(output, target)``, the mean over a batch.
        directions: One dict of tensors by parameter name, or two; see `random_directions`.
        alphas: Coordinates along the first, any sequence of numbers.
        betas: Along the second; without them the first direction alone is used.
        **options: ``mode="fast"`` evaluates as few points as ``tolerance=0.005`` (of the range of
            the loss) needs and interpolates the others; what is narrower than ``"largest_gap"`` of
            ``attrs`` may be missed. ``batch_norm="recompute"`` re-estimates running statistics at
            every point. ``weight_decay`` adds ``λ/2 ‖θ‖²``. ``resume`` names
            a file of the points that are done: for an interrupted call, and for several processes
            at once. ``seconds`` limits the time. ``on_progress`` gets points done and in all.

    Returns:
        One row a point, α outer and β inner: ``alpha``, ``beta`` (0 along a line), ``loss``, and in
        the fast mode ``evaluated``. ``attrs`` say how it was made and how convex and sharp it is.

    Raises:
        ValueError: If an option, a direction, the batches or the loss are not as expected.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets.
    """
    from analyzer.probes import landscape

    found = landscape.surface(model, batches, loss, directions, alphas, betas, **options)
    columns = found.columns()
    if found.metadata["mode"] == "exact" and found.evaluated.all():
        del columns["evaluated"]
    frame = pd.DataFrame(columns)
    frame.attrs.update(found.metadata)
    return frame


def lesion_study(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> pd.DataFrame:
    """Return what a model loses when the branch of each residual join is left out, one at a time.

    ``loss_change`` = loss without the branch − loss of the whole network. The branch operand is
    replaced by zeros, the shortcut stays; in the columns ``shortcut_…`` it is the other way round.

    Args:
        model: Any eager model, evaluated in eval mode.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        targets: What ``loss`` compares the output with; whole numbers, one a sample, are classes.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        One row a join, in forward order: ``join``, ``loss``, ``loss_change``, ``accuracy`` (null
        without classes), ``shortcut_loss``, ``shortcut_loss_change``, ``shortcut_accuracy``.
        ``attrs``: ``loss``, ``accuracy`` of the whole network; ``permutations``: two neighboring
        ``blocks`` of one shape, and ``loss``, ``loss_change``, ``accuracy`` with the two swapped.

    Raises:
        AnalyzerError: If a join cannot be intercepted; it is named.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks,
        sections 4.1 and 4.3.
    """
    with evaluating(unwrapped(model)):
        found = lesion.measure(HeldBatch(model, inputs, targets, loss))
    expect_joins(model, len(found.columns["join"]))
    types = dict.fromkeys(found.columns, "float64") | {"join": "int32"}
    frame = pd.DataFrame(dict(found.columns)).astype(types)
    for name in ("loss", "accuracy", "permutations"):
        frame.attrs[name] = json.loads(found.metadata[name])
    return frame


def gradient_noise_scale(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    num_pieces: int = 256,
) -> float:
    """Return the simple gradient noise scale, ``tr Σ / ‖G‖²``.

    Below that batch size a larger batch saves steps in proportion; far above it, it saves none.
    Both terms are averaged over pieces of the batches before they are divided.

    Args:
        model: Any eager model, evaluated in eval mode; frozen parameters are left out.
        batches: Pairs of (input, target), cut into pieces along the sample axis.
        loss: ``loss(output, target)``, the mean over the batch.
        num_pieces: Pieces at least, as far as there are samples; more give a steadier estimate.

    Returns:
        In samples; inf where the noise hides the signal, NaN without noise and signal.

    Raises:
        ValueError: If there are fewer than two samples, or no parameter wants a gradient.

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training, section 2.2.
    """
    return noise.gradient_noise(model, batches, loss, num_pieces=num_pieces).total.scale


def layer_attribution(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    method: str = "conductance",
    *,
    num_steps: int = 50,
) -> pd.DataFrame:
    """Return how much of an output every layer carries, as Captum's layer methods have it.

    The path goes from zero inputs (zero embeddings, for token models) to the inputs. Conductance is
    the sum over its steps of gradient · change of the activation: the layers that all paths cross
    carry the whole change of the output, the layers of a branch what goes through the branch.

    Args:
        model: Any eager model, evaluated in eval mode.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        target: A class; a class per sample; a tuple of indices of the output's axes behind the
            first; None for the predicted class. In outputs ``[batch, position, class]`` classes
            are those of the last position.
        method: ``conductance`` | ``integrated_gradients`` | ``gradient_x_activation`` |
            ``internal_influence``.
        num_steps: Steps of the path (Captum's ``n_steps``).

    Returns:
        One row a layer, in call order: ``layer``, ``name``, ``method``, ``attribution`` (summed
        over the layer's elements, mean over samples; NaN where refused), ``share`` of the sum over
        layers. In ``attrs``, as text: ``target``, ``convergence_delta`` per layer, ``refused`` with
        reasons, ``joins`` with the parts through shortcut and branch.

    Raises:
        ValueError: If method, steps or target do not fit.
        AnalyzerError: If no input is floating, and no embedding reads one.

    Reference:
        Dhamdhere et al. (2018), How important is a neuron; Kokhlikyan et al. (2020), Captum.
    """
    found = attribution.layer_attribution(model, inputs, target, method, num_steps=num_steps)
    columns = {"layer": range(len(found.names)), "name": found.names, "method": found.method}
    frame = pd.DataFrame(columns).astype({"layer": "int32"})
    frame["attribution"], frame["share"] = found.values, found.shares
    frame.attrs.update(attribution.metadata(found))
    return frame
