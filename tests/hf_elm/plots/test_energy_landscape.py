"""The landscape: the plane, the heights, the path at its true height, and what the picture holds."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm.free_energy import Objective
from hf_elm.plots.energy_landscape import (
    energy_landscape,
    landscape_of,
    plot_energy_landscape,
    refinement_plane,
)
from hf_elm.plots.prompt_refinement import refine_prompt
from tests.hf_elm.plots.tiny_plots import PROMPT, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def refinement():
    return refine_prompt(tiny_model(), byte_tokenizer(), PROMPT, think_steps=2, think_lr=0.6)


def test_grid_is_f_point_by_point(refinement):
    """Rows run across, columns along: a transposed or flipped grid would differ at the corners."""
    data = landscape_of(refinement, grid=5)
    plane, _, _ = refinement_plane(refinement)
    for row in (0, 1, 4):
        for column in (0, 3, 4):
            point = refinement.logits[0] + data.along[column] * plane[0] + data.across[row] * plane[1]
            expected = refinement.objective.energy(refinement.field, point[None, None])[0, 0]
            assert_close(data.energies[row, column], expected, atol=1e-10, rtol=1e-10)


def test_plane_holds_the_path_of_two_steps_at_the_reported_heights(refinement):
    data = landscape_of(refinement, span=0.5, grid=3)
    assert not data.is_straight
    length = (refinement.logits[-1] - refinement.logits[0]).norm()
    assert_close(data.path[0], torch.zeros(2, dtype=torch.float64))
    assert_close(data.path[-1], torch.stack([length, length * 0]), atol=1e-9, rtol=0)
    assert_close(data.path_distances, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(data.path_energies, refinement.energies)
    assert_close(data.energies[1, [0, 2]], refinement.energies[[0, 2]], atol=1e-10, rtol=1e-10)  # a = 0 and L, b = 0
    plane, _, _ = refinement_plane(refinement)
    assert_close(plane @ plane.T, torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=0)


def test_second_direction_is_the_svd_of_what_the_first_leaves():
    refinement = refine_prompt(tiny_model(), byte_tokenizer(), PROMPT, think_steps=5, think_lr=0.4)
    plane, _, _ = refinement_plane(refinement)
    moves = refinement.logits - refinement.logits[0]
    rest = moves - (moves @ plane[0])[:, None] * plane[0]
    eigenvectors = torch.linalg.eigh(rest.T @ rest).eigenvectors
    assert_close((eigenvectors[:, -1] @ plane[1]).abs(), torch.tensor(1.0, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_whole_grid_is_one_energy_call(monkeypatch):
    refinement = refine_prompt(tiny_model(), byte_tokenizer(), PROMPT, think_steps=2)
    plane = refinement_plane(refinement)
    monkeypatch.setattr("hf_elm.plots.energy_landscape.refinement_plane", lambda *_: plane)
    calls, energy = [], Objective.energy
    monkeypatch.setattr(Objective, "energy", lambda self, field, z: calls.append(z.shape) or energy(self, field, z))
    landscape_of(refinement, grid=21)
    assert [shape[1] for shape in calls] == [441]


def test_a_large_vocabulary_is_cut_into_calls_of_the_same_values(monkeypatch, refinement):
    whole = landscape_of(refinement, grid=7).energies
    monkeypatch.setattr("hf_elm.plots.prompt_refinement._ENTRIES_PER_CALL", 1000)
    assert_close(landscape_of(refinement, grid=7).energies, whole, atol=1e-12, rtol=1e-12)


def test_a_straight_path_gets_a_seeded_random_direction():
    model = tiny_model()
    first, again, other = (
        energy_landscape(model, byte_tokenizer(), PROMPT, think_steps=1, grid=4, seed=seed) for seed in (0, 0, 1)
    )
    assert first.is_straight
    assert torch.equal(first.energies, again.energies)
    assert not torch.allclose(first.energies, other.energies)


def test_a_linear_energy_that_does_not_move_is_a_bowl_around_its_start():
    """In the mirror geometry the start is the minimum: every other point of the plane is higher."""
    data = energy_landscape(tiny_model(energy_type="linear"), byte_tokenizer(), PROMPT, grid=9)
    assert data.is_straight
    assert (data.energies >= data.path_energies[0] - 1e-9).all()
    assert data.energies[4, :].min() < data.energies[[0, -1], :].min()


def test_top_k_leaves_the_other_tokens_out():
    data = energy_landscape(tiny_model(), byte_tokenizer(), PROMPT, think_topk=5, grid=6)
    assert data.energies.isfinite().all()
    assert (data.path_energies.diff() <= 0).all()


def test_picture_has_the_surface_and_the_path(refinement, tmp_path):
    data = landscape_of(refinement, grid=9)
    figure = plot_energy_landscape(data, path=tmp_path / "new" / "landscape.png")
    assert (tmp_path / "new" / "landscape.png").read_bytes().startswith(b"\x89PNG")
    surface, contour = figure.axes[:2]
    lines = {line.get_label(): line for line in surface.lines}
    heights = surface.lines[0].get_data_3d()[2]
    assert_close(torch.tensor(heights), data.path_energies)
    assert lines["system 1"].get_data_3d()[2][0] == data.path_energies[0]
    assert lines["system 2"].get_data_3d()[2][0] == data.path_energies[-1]
    x, y = contour.lines[0].get_data()
    assert_close(torch.tensor([list(x), list(y)], dtype=torch.float64).T, data.path)
    assert all("nats" in label for label in (surface.get_zlabel(), contour.get_xlabel(), contour.get_ylabel()))


def test_modes_and_axes(refinement):
    from matplotlib.figure import Figure

    data = landscape_of(refinement, grid=4)
    own = Figure()
    ax = own.add_subplot(projection="3d")
    assert plot_energy_landscape(data, "3d", ax) is own
    assert plot_energy_landscape(data, "contour").axes
    with pytest.raises(ValueError, match="mode must be one of both, 3d, contour"):
        plot_energy_landscape(data, "flat")
    with pytest.raises(ValueError, match="ax holds one picture"):
        plot_energy_landscape(data, "both", ax)


@pytest.mark.parametrize(("options", "message"), [({"span": 0.0}, "span"), ({"grid": 1}, "grid")])
def test_grids_that_show_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        energy_landscape(None, None, "x", **options)
