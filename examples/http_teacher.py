"""A teacher by HTTP: the segment is better in which an entry of the observation is larger on average.

python examples/http_teacher.py "orientations[0]" 8000
rlhf-bilevel train pebble --env dm_control/walker-walk-v0 --steps 30000 --labels 200 --teacher http://localhost:8000
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = os.environ.get("RLHF_BILEVEL_TEACHER_TOKEN")


def judge(pair: dict, entry: str) -> dict:
    column = pair["names"]["obs"].index(entry)
    first, second = (sum(obs[column] for obs in pair[side]["obs"]) for side in ("first", "second"))
    if first == second:
        return {"answer": "tie"}
    return {"answer": "first" if first > second else "second", "strength": 1.0}


class Handler(BaseHTTPRequestHandler):
    entry = ""

    def do_POST(self) -> None:
        known = TOKEN is None or self.headers["Authorization"] == f"Bearer {TOKEN}"
        pair = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(judge(pair, self.entry) if known else {"error": "a token is missing"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    Handler.entry = sys.argv[1]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
