"""Renders the chart: what it makes of values, or the sentence with which it refuses them."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import helm_python as helm
import yaml

HELM = Path(__file__).parents[1] / "helm"
CHART = HELM / "emporix-gateway"


def render(values, chart=CHART, release="emporix-gateway"):
    """The documents that Helm would send to the cluster."""
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values, name=release, namespace="shop")
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def refusal(values):
    """Why the chart does not render."""
    try:
        render(values)
    except helm.HelmError as error:
        return str(error)
    raise AssertionError("the values were taken")


def lint(values):
    """What `helm lint --strict` finds; that a chart has no icon is no finding."""
    report = helm.lint(CHART, values, strict=True)
    return [message["error"] for message in report["messages"] if message["severity"] > 1] + report["errors"]


@contextmanager
def storefront():
    """The chart around the sidecar, with the gateway's chart in it as `helm dependency update` would put it there."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder, "storefront")
        shutil.copytree(HELM / "tests/storefront", chart)
        shutil.copytree(CHART, chart / "charts/emporix-gateway")
        yield chart


@contextmanager
def with_files(**files):
    """The chart with these files, by their paths, in place of its own alerts and dashboards."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder, "emporix-gateway")
        shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("files"))
        for path, text in files.items():
            (chart / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (chart / "files" / path).write_text(text)
        yield chart
