"""Pushes a folder to the hub of the environment; prints the commit. Run by test_push_faults.py."""

import json
import sys

from hf_elm.hub_contents import hub_files
from hf_elm.hub_push import push_files


done = push_files(hub_files(sys.argv[1]), sys.argv[2], message="whole")
print(json.dumps({"commit": done.commit}))  # noqa: T201
