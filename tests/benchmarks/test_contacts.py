"""Contact labels: recorded, carried through shards and tokens, used as a filter and as an auxiliary loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr2.benchmarks.demonstrations.record import record
from gr2.cvae_head.kinds import HeadOptions
from gr2.data_pipeline.contacts import Contact, misses_target, read_contacts, target_contact
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.loading.token_contacts import contact_part_of, contact_parts
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.loading.token_windows import TokenWindows
from gr2.data_pipeline.store.episodes import list_episodes, read_episode
from gr2.errors import ConfigError
from gr2.gr_model.model.contacts import UNKNOWN, ContactOutlook
from gr2.gr_model.model.release import load_release
from gr2.gr_model.train.options import FinetuneOptions
from gr2.gr_model.train.stages import finetune
from gr2.gr_model.train.tokenizer_stages import tokens

PARTS = ["block_red", "drawer_link", "slide_link"]

pytestmark = pytest.mark.usefixtures("workers_at_once")


def test_contacts_are_read_as_they_are_stated() -> None:
    facts: dict[str, Any] = {"contacts": [["drawer_link", 40], ["block_red", 12]], "target": ["drawer_link"]}
    assert read_contacts(facts) == [("block_red", 12), ("drawer_link", 40)]
    assert target_contact(facts) == Contact("drawer_link", 40) and not misses_target(facts)
    assert target_contact({"contacts": facts["contacts"]}) == ("block_red", 12)
    assert misses_target(facts | {"target": ["slide_link"]}) and misses_target(facts | {"contacts": []})
    for unknown in ({}, {"contacts": "red"}, {"contacts": [["red"]]}, {"target": ["slide_link"]}):
        assert read_contacts(unknown) is None and target_contact(unknown) is None and not misses_target(unknown)


def test_the_outlook_learns_part_and_time_and_leaves_out_what_nobody_knows() -> None:
    torch.manual_seed(0)
    outlook, seen = ContactOutlook(PARTS, width=8), torch.eye(8)[:4]
    part, steps = torch.tensor([0, 1, 2, UNKNOWN]), torch.tensor([-3, 5, 100, 0])
    optimizer = torch.optim.AdamW(outlook.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        found = outlook.loss(seen, part, steps)
        found["contact_loss"].backward()
        optimizer.step()
    assert found["contact_loss"] < 0.1 and found["contact_accuracy"] == 1
    assert outlook.when(seen[:3]).argmax(-1).tolist() == [0, 1, 4]
    nobody = outlook.loss(seen, torch.full((4,), UNKNOWN), steps)
    assert nobody["contact_loss"] == 0 and nobody["contact_accuracy"] == 0


def test_contacts_go_from_the_recording_into_the_loss(tmp_path: Path) -> None:
    common: dict[str, Any] = {"scenes": "D", "chains": 2, "num_workers": 1, "play_share": 0.0}
    record(out=tmp_path / "record", contacts=True, **common)
    record(out=tmp_path / "plain", **common)
    stated = {}
    for one, other in zip(list_episodes(tmp_path / "record"), list_episodes(tmp_path / "plain"), strict=True):
        episode = read_episode(one)
        assert np.array_equal(episode.actions, read_episode(other).actions)
        facts = json.loads((one / "episode.json").read_text())["facts"]
        contact = target_contact(facts)
        assert contact is not None and contact.part in facts["target"] and 0 <= contact.step < len(episode.actions)
        stated[episode.instruction] = contact
    write_video_shards(source=tmp_path / "record", out=tmp_path / "shards", num_workers=1)
    tokens(shards=tmp_path / "shards", out=tmp_path / "tokens")
    store = TokenStore.open([tmp_path / "tokens"])
    assert contact_parts(store) == sorted({contact.part for contact in stated.values()})
    parts = [*reversed(contact_parts(store)), "another"]
    windows = TokenWindows(store, num_frames=2, frame_step=1, chunk_length=5, contact_parts=parts)
    episodes = np.arange(len(store))
    batch = windows.gather(episodes, np.ones(len(store), np.int64))
    for i in episodes:
        contact = stated[store.text(int(store.text_ids(episodes)[i]))]
        assert parts[int(batch["contact_part"][i])] == contact.part
        assert int(batch["contact_steps"][i]) == contact.step - int(store.frame_stride[i])
    assert (contact_part_of(store, episodes, ["another"]) == UNKNOWN).all()

    options: dict[str, Any] = {"tokens": [str(tmp_path / "tokens")], "batch_size": 4, "threads": 1}
    options |= {"frame_fraction": 0.0, "head": HeadOptions(kind="flow"), "steps": 2, "validation_share": 0.0}
    finetune(FinetuneOptions(out=tmp_path / "policy", contacts=True, **options))
    assert load_release(tmp_path / "policy").model.config.contacts == tuple(contact_parts(store))
    assert "contact_accuracy" in (tmp_path / "policy" / "metrics.csv").read_text()
    finetune(FinetuneOptions(out=tmp_path / "again", init=tmp_path / "policy", **options))
    assert load_release(tmp_path / "again").model.contact is None


def test_episodes_that_miss_their_target_are_dropped_and_absent_labels_are_said(tmp_path: Path) -> None:
    record(out=tmp_path / "record", scenes="D", chains=1, num_workers=1, play_share=0.0, contacts=True)
    first = list_episodes(tmp_path / "record")[0]
    described = json.loads((first / "episode.json").read_text())
    described["facts"]["target"] = ["moon"]
    (first / "episode.json").write_text(json.dumps(described))
    manifest = write_video_shards(source=tmp_path / "record", out=tmp_path / "shards", num_workers=1)
    assert manifest["counts"]["dropped"] == {"target_untouched": 1}
    record(out=tmp_path / "plain", scenes="D", chains=1, num_workers=1, play_share=0.0)
    write_video_shards(source=tmp_path / "plain", out=tmp_path / "unlabeled", num_workers=1)
    tokens(shards=tmp_path / "unlabeled", out=tmp_path / "tokens")
    with pytest.raises(ConfigError, match="contact labels"):
        finetune(FinetuneOptions(tokens=[str(tmp_path / "tokens")], out=tmp_path / "policy", contacts=True))
    with pytest.raises(ConfigError, match="CALVIN's layout has no place"):
        record(out=tmp_path / "calvin", layout="calvin", contacts=True, chains=1)
