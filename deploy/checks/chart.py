"""Renders the chart: what it makes of values, or the sentence with which it refuses them."""

import shutil
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


def storefront(folder):
    """The chart around the sidecar, with the gateway's chart beside it as `helm dependency update` would put it."""
    chart = Path(folder) / "storefront"
    shutil.copytree(HELM / "tests" / "storefront", chart)
    shutil.copytree(CHART, chart / "charts" / "emporix-gateway")
    return chart


def merged(base, over):
    """`base` with what `over` says otherwise, as Helm puts values files together."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {key: merged(base[key], over[key]) if key in base and key in over else over.get(key, base.get(key))
            for key in {**base, **over}}
