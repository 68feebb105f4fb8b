#!/usr/bin/env bash
# Makes the virtual environment this checkout runs in. Safe to run again.
# OMNITOK_EXTRAS, OMNITOK_TORCH, OMNITOK_WHEELS (a folder of wheels), OMNITOK_NO_UV and PYTHON
# override its choices.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${OMNITOK_EXTRAS:-dev}
torch=${OMNITOK_TORCH:-torch==2.13.0}
wheels=${OMNITOK_WHEELS:-${PIP_FIND_LINKS:-}}

py=""
for c in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
  if command -v "$c" >/dev/null &&
    "$c" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    py=$c
    break
  fi
done
if [ -z "$py" ]; then
  echo "omnitok needs Python 3.10 or newer with venv (Debian/Ubuntu: apt-get install python3-venv)" >&2
  exit 1
fi
[ -x "$venv/bin/python" ] || "$py" -m venv "$venv"

if [ -z "$wheels" ]; then # a folder that pip's own configuration names
  wheels=$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)
fi
links=()
if [ -n "$wheels" ] && [ -d "$wheels" ]; then links=(--find-links "$wheels"); fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --retries 5 --timeout 60 "$@"; }

# uv installs the same set about ten times faster; pip is the way back if it cannot be had or fails
install() {
  if [ -z "${OMNITOK_NO_UV:-}" ] && { [ -x "$venv/bin/uv" ] || pip install -q 'uv>=0.5' 2>/dev/null; }; then
    if [ -z "${SSL_CERT_FILE:-}" ]; then
      for f in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
        if [ -f "$f" ]; then export SSL_CERT_FILE=$f && break; fi
      done
    fi
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" "${links[@]}" "$@" && return 0
    echo "note: uv failed, trying pip" >&2
  fi
  pip install -q "${links[@]}" "$@"
}

# torch is named with an exact version in the same resolution, so nothing can pull another build of it
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  install -e ".[$extras]"
else
  install "$torch" -e ".[$extras]"
fi
