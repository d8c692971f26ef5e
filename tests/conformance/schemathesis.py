#!/usr/bin/env python3
"""Holds a running server against its own OpenAPI document.

schemathesis makes requests from the document, good ones and bad ones, and
looks at every answer: no server error, no status, header or body that the
document does not know. Once as an administrator, once without a token.

    schemathesis.py PODYARD [--seconds N] [--seed N] [--database-url URL]

PODYARD is the binary. `schemathesis` is taken from the Python that runs this.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

PASSWORD = "the-password-of-admin"
CHECKS = ",".join([
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
])
# Would end the token that the run goes on with.
SPARED = ["--exclude-path-regex", "^/v3/auth/tokens$"]


def call(base, method, path, body=None, token=None):
    """One request; answers its status, headers and body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("X-Auth-Token", token)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.headers, json.loads(answer.read() or b"null")


def start(podyard, folder, database_url):
    """Starts the server; answers the process and its address."""
    env = dict(os.environ, PODYARD_ADMIN_PASSWORD=PASSWORD, PODYARD_DATA_DIR=os.path.join(folder, "data"))
    if database_url:
        env["PODYARD_DATABASE_URL"] = database_url
    log = open(os.path.join(folder, "log"), "wb")
    args = [podyard, "serve", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=log, env=env, cwd=folder)
    for line in server.stdout:
        found = re.search(rb"listens on (\S+)", line)
        if found:
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return server, found.group(1).decode()
    sys.exit("the server did not start: " + open(log.name).read())


def login(base):
    """An administrator's token."""
    user = {"name": "admin", "domain": {"id": "default"}, "password": PASSWORD}
    auth = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    return call(base, "POST", "/v3/auth/tokens", auth)[1]["X-Subject-Token"]


def fill(base, token):
    """Some rows, so that lists are not empty."""
    spec = call(base, "GET", "/specs", token=token)[2]["specs"][0]["id"]
    for i in range(3):
        space = {"name": f"space {i}", "template_id": "files", "spec_id": spec}
        call(base, "POST", "/spaces", {"space": space}, token)
    user = {"name": "ann", "password": "password-of-ann"}
    call(base, "POST", "/users", {"user": user}, token)


def rest(base, token):
    """Ends what the run has started: programs outlive the server."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        spaces = call(base, "GET", "/spaces?limit=1000&field=id,running,status", token=token)[2]["spaces"]
        moving = [it for it in spaces if it["running"] or it["status"] in ("starting", "stopping")]
        if not moving:
            return
        for space in moving:
            try:
                call(base, "POST", f"/spaces/{space['id']}/stop", {}, token)
            except urllib.error.HTTPError:
                pass  # It is on its way already.
        time.sleep(0.5)


def run(base, seconds, seed, folder, token=None):
    """One run of schemathesis; answers whether it found nothing."""
    tool = shutil.which("schemathesis", path=os.path.dirname(sys.executable)) or "schemathesis"
    args = [tool, "run", base + "/openapi.json", "--checks", CHECKS, "--seed", str(seed), "--no-color"]
    # One worker: several read Python's source at once, and CPython counts the
    # depth of its parser for all threads together ("recursion depth mismatch").
    args += ["--phases", "examples,coverage,fuzzing", "--max-time", str(seconds), "--workers", "1"]
    args += ["--generation-database", ":memory:", "--suppress-health-check", "all", "--warnings", "off"]
    args += ["--request-timeout", "30"] + SPARED
    if token:
        args += ["--header", "X-Auth-Token: " + token]
    print("--", "as an administrator" if token else "without a token", "with seed", seed, flush=True)
    return subprocess.run(args, cwd=folder, check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("podyard")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database-url")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="podyard-schemathesis-") as folder:
        server, base = start(os.path.abspath(args.podyard), folder, args.database_url)
        try:
            token = login(base)
            fill(base, token)
            good = run(base, args.seconds * 4 // 5, args.seed, folder, token)
            good &= run(base, args.seconds // 5, args.seed, folder)
            rest(base, token)
            # Alive to the end, and with nothing in its log that went wrong inside.
            call(base, "GET", "/healthz")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        for line in open(os.path.join(folder, "log")):
            if '"level":"ERROR"' in line and "stream error" not in line:
                print(line.strip())
                good = False
    sys.exit(0 if good else 1)


main()
