#!/usr/bin/env bash
# Phase 4a from a checkpoint of phase 3, after the checks: tools/phase4a_task_gca.sh CKPT [options of tools/preflight.py]
exec "${PYTHON:-python}" "$(dirname "$0")/phase4a_task_gca.py" "$@"
