"""The list of saved comparisons."""

from dataclasses import replace
from pathlib import Path

from deepdoctor.ui import history
from tests.ui.fakes import fake_comparison, fake_context, fake_run, transcript


def test_the_history_lists_newest_first_as_links(tmp_path: Path):
    context = fake_context(tmp_path)
    assert "None yet" in history.saved(context)
    run = fake_run(context.settings.data_dir, name="a <run>")
    saved = context.comparisons.save(fake_comparison(run=run.id, question="<script>x</script>", step=20))
    listed = history.saved(context)
    assert f'href="?comparison={saved.id}"' in listed
    assert "&lt;script&gt;" in listed
    assert "<script>" not in listed
    assert "a &lt;run&gt;, checkpoint 20" in listed


def test_a_comparison_that_was_stopped_says_so_in_the_list(tmp_path: Path):
    context = fake_context(tmp_path)
    context.comparisons.save(fake_comparison())
    assert "stopped" not in history.saved(context)
    context.comparisons.save(replace(fake_comparison(), tuned=transcript("It is", finish_reason="stopped")))
    assert history.saved(context).count(" · stopped") == 1
