"""Sentences as queries: their embeddings, what is chosen by them, how they are shown, what is refused."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from data_curation import dedup, embed, report, select
from data_curation.embed import texts
from data_curation.features import Features
from models.team08_HATFreq.image_io import read_rgb, write_png

SENTENCES = ["a red brick wall", "leaves of a tree, from near"]
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A model folder of open_clip, its text tower with the words of the real one."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"size": 32}}))
    torch.manual_seed(0)
    model = open_clip.CLIP(TINY["embed_dim"], open_clip.CLIPVisionCfg(**TINY["vision_cfg"]),
                           open_clip.CLIPTextCfg(**TINY["text_cfg"]))  # fmt: skip
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def embed_lines(lines, clip, folder):
    (folder / "sentences.txt").write_text("\n".join(lines))
    texts.main([str(folder / "sentences.txt"), "--model", clip, "--out", str(folder / "texts")])
    return folder / "texts"


@pytest.mark.slow
def test_images_are_chosen_by_sentences_and_the_report_shows_them(clip, tmp_path):
    (tmp_path / "pool").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / "pool" / f"{number}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    embed.main([str(tmp_path / "pool"), "--model", clip, "--out", str(tmp_path / "images"), "--workers", "1"])
    queries, pool = Features(embed_lines(SENTENCES, clip, tmp_path)), Features(tmp_path / "images")
    model = open_clip.create_model(clip, require_pretrained=True).eval()
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer(clip)(SENTENCES), normalize=True).numpy()
    assert np.abs(queries.vectors([0, 1]) - expected).max() < 1e-3  # float16
    words = ["--pool", str(pool.folder), "--queries", str(queries.folder), "--out", str(tmp_path / "chosen")]
    select.main([*words, "--per_query", "1"])
    best = {int(row) for row in (queries.vectors([0, 1]) @ pool.vectors(range(6)).T).argmax(axis=1)}
    listed = (tmp_path / "chosen" / "data_ldcc.txt").read_text().splitlines()
    assert {line for line in listed if not line.startswith("#")} == {str(tmp_path / "pool" / f"{n}.png") for n in best}
    cards = queries.column("name")
    assert [name.rpartition("/")[2] for name in cards] == [
        "00001_a-red-brick-wall.png",
        "00002_leaves-of-a-tree-from-near.png",
    ]
    assert (read_rgb(cards[0]) < 128).mean() > 0.003  # something is written on it
    dedup.main(["--pool", str(pool.folder), "--evaluation", str(queries.folder), "--out", str(tmp_path / "duplicates")])
    assert select.read_names(tmp_path / "duplicates" / "removed.txt") == set()
    report.main(["--selection", str(tmp_path / "chosen"), "--duplicates", str(tmp_path / "duplicates"),
                 "--out", str(tmp_path / "report")])  # fmt: skip
    assert "00001_a-red-brick-wall.png" in (tmp_path / "report" / "gallery.html").read_text() + "".join(
        path.read_text() for path in (tmp_path / "report").rglob("*.js")
    )


@pytest.mark.parametrize(
    "lines, message",
    [
        (["", "  "], "has no sentence"),
        (["a wall", "a  wall"], "has the sentence 'a wall' twice"),
        (["wall " * 15], "is longer than 16 tokens: shorten it"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(lines, message, clip, tmp_path):
    with pytest.raises(SystemExit, match=message):
        embed_lines(lines, clip, tmp_path)
    assert not (tmp_path / "texts").exists()
