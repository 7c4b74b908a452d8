"""A model that is elsewhere: requests are packed whole, and a server that does not answer loses nothing."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

import mechinterp as mi
from mechinterp import hub
from mechinterp.backends.nnsight_remote import RemoteBackend, weightless
from mechinterp.model import Model
from tests.conftest import EMBEDDED

NAMES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


@pytest.fixture(scope="module")
def root():
    return weightless(str(hub.resolve(EMBEDDED).path), None)


@pytest.fixture
def sent(real, root):
    """The embedded model, every pass packed, unpacked without this project's modules, and run."""
    return Model("elsewhere", RemoteBackend(root, "local"), real.tokenizer, "0")


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_request_that_was_packed_gives_what_the_model_gives_here(real, sent):
    prompt = real.chat("Hello?").tokens
    direction = torch.randn(576, generator=torch.Generator().manual_seed(0))
    edits = [
        mi.Add(mi.Site("resid_post", 3), direction, strength=2.0),
        mi.ProjectOut(mi.Site("attn_out", 5), direction),
        mi.Rotate(mi.Site("resid_pre", 7), direction, 0.3),
    ]
    asked = {"capture": [mi.Site(name, 4) for name in NAMES], "interventions": edits, "positions": [3, -1]}
    for more in ({"logits_at": [-1]}, {"logits_at": (), "stop_after": 8}):
        here, there = (model.forward(prompt, **asked, **more) for model in (real, sent))
        for name in NAMES:
            torch.testing.assert_close(there[mi.Site(name, 4)], here[mi.Site(name, 4)], rtol=0, atol=0)
        if here.logits is None:
            assert there.logits is None
        else:
            torch.testing.assert_close(there.logits, here.logits, rtol=0, atol=0)


def refusing_address() -> str:
    """Of a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.real
@pytest.mark.enable_socket
def test_a_refused_connection_is_said_within_seconds_and_nothing_is_lost(real, root, monkeypatch):
    from nnsight.modeling import huggingface

    monkeypatch.setitem(huggingface._ID_CACHE, root.repo_id, "org/name")
    backend = RemoteBackend(root)
    backend.remote = refusing_address()
    model, prompt = Model("elsewhere", backend, real.tokenizer, "0"), real.chat("Hello?").tokens
    vector = torch.ones(576)
    kept, given = prompt.clone(), vector.clone()
    edit = mi.Add(mi.Site("resid_post", 3), vector)
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match="refused.*NDIF_HOST.*NDIF_API_KEY.*without remote=True"):
        model.forward(prompt, capture=[mi.Site("resid_post", 4)], interventions=[edit])
    assert time.monotonic() - begun < 20
    assert torch.equal(prompt, kept) and torch.equal(vector, given)
    backend.remote = "local"
    here = real.forward(prompt, logits_at=[-1], interventions=[edit])
    torch.testing.assert_close(
        model.forward(prompt, logits_at=[-1], interventions=[edit]).logits, here.logits, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "asked, says",
    [
        ({"keep_cache": True}, "a cache .* is not sent to a remote model"),
        ({"knockouts": "some"}, "a knock-out is not sent"),
        ({"capture": [mi.Site("pattern", 0)]}, "has no pattern"),
    ],
)
def test_what_one_request_cannot_do_is_refused_before_it_is_sent(real, sent, asked, says):
    if "knockouts" in asked:
        asked = {"knockouts": [mi.KnockOut(layers=(0,), rows=(3,), keys=(1,))]}
    with pytest.raises(ValueError, match=says):
        sent.forward(real.chat("Hello?").tokens, **asked)
    with pytest.raises(ValueError, match="a cache"):
        mi.sample(sent, real.chat("Hello?").tokens, [mi.Phase(1)])
    with pytest.raises(ValueError, match="unembed needs weights, and those of a remote model are not here"):
        sent.unembed(torch.zeros(1, 576))


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "transformers"},
        {"backend": "nnsight", "adapter": "somewhere"},
        {"backend": "nnsight", "subfolder": "inside"},
    ],
)
def test_remote_is_for_an_id_on_nnsight_alone(given):
    with pytest.raises(ValueError, match='remote=True is for an id on backend="nnsight"'):
        mi.load("org/name", remote=True, **given)


def test_a_subfolder_in_the_name_is_refused_like_one_beside_it():
    with pytest.raises(ValueError, match="without an adapter or a subfolder"):
        mi.load("org/name:inside", backend="nnsight", remote=True)


def test_an_id_whose_files_cannot_be_had_is_said_so():
    with pytest.raises(ConnectionError, match="org/name is not in the cache, and the hub is switched off"):
        mi.load("org/name", backend="nnsight", remote=True)


DOOR = """
import sys, time
from pathlib import Path
import mechinterp as mi
from nnsight.modeling import huggingface
huggingface._ID_CACHE["org/name"] = "org/name"
try:
    mi.load("org/name", backend="nnsight", remote=True)
except ConnectionError as error:
    print(error)
model = mi.load("org/name", backend="nnsight", remote=True, verify=False)
print(model, model.source["kind"], model.notes)
"""


@pytest.mark.enable_socket
@pytest.mark.timeout(180)
def test_the_door_fetches_no_weights_and_verifies_on_the_server(tmp_path):
    """With a snapshot of configuration and tokenizer alone in the cache, and a server that refuses."""
    source, commit = hub.resolve(EMBEDDED).path, "c0ffee" * 6 + "c0ff"
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in source.glob("*.json"):
        (snapshot / file.name).write_bytes(file.read_bytes())
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "NDIF_HOST": refusing_address(),
    }
    done = subprocess.run(
        [sys.executable, "-c", DOOR], env=environment, capture_output=True, text=True, timeout=150
    )
    assert "the remote pass failed (ConnectionRefusedError" in done.stdout, done.stderr
    assert "Model('org/name', backend='nnsight', 30 layers" in done.stdout and "remote" in done.stdout
