#!/bin/sh
# Install dependencies into /opt/venv at the versions of requirements.lock, and compile them. Use: install.sh REQUIREMENT [OPTION...]
set -eu
pip --python /opt/venv/bin/python install --no-compile -c requirements.lock "$@"
pip --python /opt/venv/bin/python uninstall -y internlm-chat
# One of torch's own tests is written for a later Python.
python -m compileall -q --invalidation-mode unchecked-hash -x 'py312_intrinsics' /opt/venv
