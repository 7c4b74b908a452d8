"""Sites: what a name and a layer may be, and their order in a pass."""

import numpy as np
import pytest
import torch

from mechinterp.sites import NAMES, Site, sites


@pytest.mark.parametrize("layer", [np.int64(3), np.int32(3), torch.tensor(3), 3])
def test_fault_003_integers_of_any_library_are_layers(layer):
    site = Site("resid_post", layer)
    assert (
        site == Site("resid_post", 3)
        and type(site.layer) is int
        and hash(site) == hash(Site("resid_post", 3))
    )


@pytest.mark.parametrize("layer", [True, 1.0, "1", None, np.float64(1), np.bool_(True), torch.tensor(1.5)])
def test_fault_003_bools_floats_and_strings_are_not(layer):
    with pytest.raises(TypeError, match="layer must be an integer"):
        Site("resid_post", layer)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'resid_pst'.*did you mean 'resid_post'"):
        Site("resid_pst", 0)  # type: ignore[arg-type]


def test_fault_004_layers_empty_repeated_and_unsorted():
    with pytest.raises(ValueError, match="no layers"):
        sites("z", [])
    with pytest.raises(ValueError, match=r"\[2, 1, 2\] repeat"):
        sites("z", [2, 1, 2])
    assert [site.layer for site in sites("z", [5, 1, 3])] == [5, 1, 3]
    assert len(sites("z", range(5000))) == 5000


def test_sites_sort_in_the_order_of_a_pass():
    order = [Site(name, layer) for layer in range(3) for name in NAMES]
    shuffled = [order[i] for i in torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
    assert sorted(shuffled) == order != shuffled


@pytest.mark.parametrize(
    "text,site",
    [
        ("blocks.5.hook_resid_pre", Site("resid_pre", 5)),
        ("blocks.0.attn.hook_z", Site("z", 0)),
        ("blocks.12.attn.hook_rot_q", Site("q_rot", 12)),
        ("blocks.3.attn.hook_pattern", Site("pattern", 3)),
    ],
)
def test_hook_names_of_transformer_lens_parse(text, site):
    assert Site.parse(text) == site


@pytest.mark.parametrize(
    "text", ["blocks.x.hook_z", "hook_embed", "blocks.1.hook_resid_pre.extra", "blocks.-1.hook_z", ""]
)
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match="write blocks.LAYER.hook_NAME"):
        Site.parse(text)
