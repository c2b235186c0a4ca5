"""The commands of `gr2`: their words, and where each finds its function. Nothing is imported before it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..targets import Target


def _demo() -> Target:
    """Run the whole chain at laptop size and write the report."""
    from ..benchmarks.demo import demo

    return demo


def _data_record() -> Target:
    """Record scripted demonstrations in the simulator."""
    from ..benchmarks.demonstrations.record import record

    return record


def _data_inspect() -> Target:
    """Report what a dataset holds, what is broken, and what to fix."""
    from ..data_pipeline.inspection.inspect import inspect_source

    return inspect_source


def _data_statistics() -> Target:
    """Measure states and actions without touching video and report what looks wrong."""
    from ..data_pipeline.statistics.table import statistics

    return statistics


def _data_shards() -> Target:
    """Filter videos and episodes and write them as webdataset shards."""
    from ..data_pipeline.curation.ingest import write_video_shards

    return write_video_shards


def _data_curate() -> Target:
    """Cut clips at scene cuts and drop what teaches nothing, with a reason for each."""
    from ..data_pipeline.curation.curate import curate

    return curate


def _data_caption() -> Target:
    """Describe every clip with a vision-language model and keep the caption it had."""
    from ..data_pipeline.curation.caption import caption

    return caption


def _caption_train() -> Target:
    """Train a captioner of clips of your own over a language model, for `gr2 data caption`."""
    from ..data_pipeline.caption_training import train_captioner

    return train_captioner


def _data_export() -> Target:
    """Write robot episodes as a LeRobot dataset."""
    from ..data_pipeline.store.lerobot_writer import export

    return export


def _data_push() -> Target:
    """Put video or token shards on the Hugging Face Hub."""
    from ..data_pipeline.store.publishing import push

    return push


def _data_report() -> Target:
    """Write one HTML page about what was kept and dropped, with images of both."""
    from ..data_pipeline.curation.report_page import write_data_report

    return write_data_report


def _data_tokens() -> Target:
    """Encode the shards' images and texts into token shards."""
    from ..gr_model.train.tokenizer_stages import tokens

    return tokens


def _tokenizer_train() -> Target:
    """Train the VQGAN image tokenizer."""
    from ..gr_model.train.tokenizer_stages import train_tokenizer

    return train_tokenizer


def _text_train() -> Target:
    """Train the small CLIP text tower."""
    from ..gr_model.train.tokenizer_stages import train_text

    return train_text


def _pretrain() -> Target:
    """Train the GPT to predict future frames."""
    from ..gr_model.train.stages import pretrain

    return pretrain


def _finetune() -> Target:
    """Train frames and trajectories together on robot episodes."""
    from ..gr_model.train.stages import finetune

    return finetune


def _improve() -> Target:
    """Measure a policy, correct it where it fails, finetune it, over rounds."""
    from ..benchmarks.improve import improve

    return improve


def _imagine() -> Target:
    """Predict future frames of recorded episodes, an image or a video."""
    from ..benchmarks.imagine.run import imagine

    return imagine


def _rollout() -> Target:
    """Act in the simulator and measure success."""
    from ..benchmarks.rollout import rollout

    return rollout


def _serve() -> Target:
    """Answer observations with trajectories over HTTP."""
    from ..gr_model.serve.serving import serve

    return serve


def _benchmark_actions() -> Target:
    """Measure predicted chunks on held-out episodes of any robot, beside holding still and the mean."""
    from ..benchmarks.actions.run import benchmark

    return benchmark


def _view() -> Target:
    """Show an episode of any dataset, or a policy at work, in rerun's viewer."""
    from ..benchmarks.view.run import view

    return view


def _push() -> Target:
    """Put a released model on the Hugging Face Hub."""
    from ..gr_model.act.publishing import push

    return push


def _benchmark_policies() -> Target:
    """Train the systems that GR-2 is compared with on the same demonstrations and measure them side by side."""
    from ..benchmarks.policies.run import benchmark

    return benchmark


def _benchmark_claims() -> Target:
    """Measure what GR-2's report claims, in miniature, over several seeds, and write a page with plots."""
    from ..benchmarks.claims.run import benchmark

    return benchmark


def _benchmark_calvin() -> Target:
    """Run the CALVIN chains and print average length with its interval."""
    from ..benchmarks.calvin.evaluate import evaluate

    return evaluate


def _benchmark_calvin_verify() -> Target:
    """Compare tasks, sequences and starts with recordings of the official CALVIN."""
    from ..benchmarks.calvin.verify import verify

    return verify


def _benchmark_calvin_images() -> Target:
    """Draw scenes A to D with each set of assets and renderer on one sheet."""
    from ..benchmarks.calvin.gallery import images

    return images


def _benchmark_calvin_speed() -> Target:
    """Time an evaluation beside CALVIN's own loop: physics, images, the whole."""
    from ..benchmarks.calvin.speed import speed

    return speed


def _benchmark_libero() -> Target:
    """Run LIBERO's tasks from their official initial states and print the success of each, with an interval."""
    from ..benchmarks.libero.evaluate import evaluate

    return evaluate


def _benchmark_metaworld() -> Target:
    """Run Meta-World's tasks and print the success of each, with an interval."""
    from ..benchmarks.metaworld.evaluate import evaluate

    return evaluate


def _benchmark_data() -> Target:
    """Time shards, decoding and curation beside webdataset and decord, and report who waits for whom."""
    from ..benchmarks.data.run import benchmark

    return benchmark


def _benchmark_speed() -> Target:
    """Time training, generation, the tokenizer and a control cycle beside HuggingFace, PyTorch and taming."""
    from ..benchmarks.speed.run import speed

    return speed


def _benchmark_video() -> Target:
    """Measure predicted video of held-out clips with intervals, beside copying the last frame and the mean frame."""
    from ..benchmarks.video.run import benchmark

    return benchmark


def _benchmark_wbc() -> Target:
    """Follow smooth, hard and noisy motions; print errors, limits, distances and times."""
    from ..benchmarks.wbc.run import benchmark

    return benchmark


def _benchmark_wbc_pick() -> Target:
    """Pick a block among obstacles in a simulator with dynamics; print success, limits, contacts."""
    from ..benchmarks.wbc.picking import benchmark

    return benchmark


def _wbc_track() -> Target:
    """Follow one motion and write a video and a page of plots."""
    from ..benchmarks.wbc.track import track

    return track


def _report() -> Target:
    """Write the HTML report of a run folder."""
    from ..benchmarks.report.page import write_report

    return write_report


def _doctor() -> Target:
    """Check this machine: packages, video codecs, renderer, GPU, disk."""
    from ..benchmarks.doctor import doctor

    return doctor


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A row of the command table.

    Args:
        words: What the user types after `gr2`.
        target: Import and return the function that does the work.
        group: Heading in the help.
        prints_options: Print the resolved options to stderr before the work begins.
        bare: The option that may be given first without its name, as in `gr2 data inspect PATH`; several values where
            it is a list.
        writes_folder: `--out`, where the command has it, is a folder, on which one process at a time works.
    """

    words: str
    target: Callable[[], Target]
    group: str
    prints_options: bool = False
    bare: str = ""
    writes_folder: bool = True

    @property
    def summary(self) -> str:
        """Return the line that the help shows."""
        return (self.target.__doc__ or "").strip().partition("\n")[0]


COMMANDS = (
    Command(words="demo", target=_demo, group="start", prints_options=True),
    Command(words="doctor", target=_doctor, group="start"),
    Command(words="data record", target=_data_record, group="data", prints_options=True),
    Command(words="data inspect", target=_data_inspect, group="data", bare="source"),
    Command(words="data statistics", target=_data_statistics, group="data", bare="source"),
    Command(words="data shards", target=_data_shards, group="data", prints_options=True),
    Command(words="data curate", target=_data_curate, group="data", prints_options=True),
    Command(words="data caption", target=_data_caption, group="data", prints_options=True),
    Command(words="data tokens", target=_data_tokens, group="data", prints_options=True),
    Command(words="data export", target=_data_export, group="data"),
    Command(words="data push", target=_data_push, group="data"),
    Command(words="data report", target=_data_report, group="data", bare="folder"),
    Command(words="caption train", target=_caption_train, group="data", prints_options=True),
    Command(words="tokenizer train", target=_tokenizer_train, group="training", prints_options=True),
    Command(words="text train", target=_text_train, group="training", prints_options=True),
    Command(words="pretrain", target=_pretrain, group="training", prints_options=True),
    Command(words="finetune", target=_finetune, group="training", prints_options=True),
    Command(words="improve", target=_improve, group="training", prints_options=True),
    Command(words="imagine", target=_imagine, group="results", prints_options=True),
    Command(words="rollout", target=_rollout, group="results", prints_options=True),
    Command(words="serve", target=_serve, group="results", prints_options=True),
    Command(words="view", target=_view, group="results", writes_folder=False),
    Command(words="push", target=_push, group="results"),
    Command(words="benchmark actions", target=_benchmark_actions, group="results"),
    Command(words="benchmark calvin", target=_benchmark_calvin, group="results", prints_options=True),
    Command(words="benchmark calvin verify", target=_benchmark_calvin_verify, group="results", bare="folder"),
    Command(words="benchmark calvin images", target=_benchmark_calvin_images, group="results"),
    Command(words="benchmark calvin speed", target=_benchmark_calvin_speed, group="results"),
    Command(words="benchmark policies", target=_benchmark_policies, group="results", prints_options=True),
    Command(words="benchmark claims", target=_benchmark_claims, group="results", prints_options=True),
    Command(words="benchmark data", target=_benchmark_data, group="results"),
    Command(words="benchmark libero", target=_benchmark_libero, group="results", prints_options=True),
    Command(words="benchmark metaworld", target=_benchmark_metaworld, group="results", prints_options=True),
    Command(words="benchmark speed", target=_benchmark_speed, group="results"),
    Command(words="benchmark video", target=_benchmark_video, group="results", prints_options=True),
    Command(words="benchmark wbc", target=_benchmark_wbc, group="results", bare="files"),
    Command(words="benchmark wbc pick", target=_benchmark_wbc_pick, group="results"),
    Command(words="wbc track", target=_wbc_track, group="results", bare="file"),
    Command(words="report", target=_report, group="results", bare="run"),
)


RENAMED_COMMANDS = {"benchmark wbc-pick": "benchmark wbc pick", "benchmark calvin pictures": "benchmark calvin images"}
"""Old words of commands."""
