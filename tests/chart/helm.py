"""Helm's own engine for tests: a request in JSON on standard input, the answer in JSON on standard output."""

import json
import sys

from helm_python import Chart, Config, HelmError
from helm_python.chart import lint, package, values_from_yaml


def documents(text):
    """The objects of a stream of YAML."""
    for document in ("\n" + text).split("\n---"):
        if any(line.strip() and not line.lstrip().startswith("#") for line in document.splitlines()):
            yield values_from_yaml(document)


def render(request):
    with Chart.load(request["chart"]) as chart:
        files = chart.render(
            values_from_yaml(request["values"]), name=request["name"], namespace=request["namespace"], is_install=True
        )
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    manifests = [text for path, text in files.items() if not path.endswith(("NOTES.txt", ".tpl"))]
    return {"objects": [item for text in manifests for item in documents(text)], "notes": "".join(notes)}


def lint_chart(request):
    report = lint(request["chart"], values_from_yaml(request["values"]), strict=True)
    return {"problems": [m for m in report["messages"] if m["severity"] > 1] + report["errors"]}


def release(request):
    """Installs, upgrades, tests or removes a release."""
    with Config(kubeconfig_path=request["kubeconfig"], namespace=request["namespace"]) as config:
        name, timeout = request["name"], request["timeout"]
        if request["verb"] == "test":
            return config.test(name, timeout=timeout)
        if request["verb"] == "uninstall":
            return config.uninstall(name, timeout=timeout, wait="hookOnly")
        act = {"install": config.install, "upgrade": config.upgrade}[request["verb"]]
        values = values_from_yaml(request["values"])
        return act(request["chart"], name, values, namespace=request["namespace"], timeout=timeout, wait="hookOnly")


def main():
    request = json.load(sys.stdin)
    verbs = {
        "render": render,
        "lint": lint_chart,
        "parse": lambda request: {"objects": list(documents(request["text"]))},
        "package": lambda request: {
            "file": package(request["chart"], destination=request["folder"], version=request["version"])
        },
    }
    try:
        answer = verbs.get(request["verb"], release)(request)
    except HelmError as error:
        answer = {"refused": str(error)}
    json.dump(answer, sys.stdout)


main()
