#!/usr/bin/env bash
# Create deploy/.env and deploy/secrets/ for compose.yaml. Existing files are left unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Compose mounts these files with the owner and mode that they have here, and its services run under their own
# accounts. So the files are world-readable, and the folder, which is not mounted, is private.
mkdir -p secrets
chmod 700 secrets
for name in metrics_key postgres_password grafana_password; do
  if [[ ! -s secrets/$name ]]; then
    secret > "secrets/$name"
    chmod 444 "secrets/$name"
    say "Created secrets/$name."
  fi
done
if [[ ! -s secrets/api_keys ]]; then
  {
    secret
    printf '\n# Used by Prometheus; also in metrics_key.\n%s\n' "$(cat secrets/metrics_key)"
  } > secrets/api_keys
  chmod 444 secrets/api_keys
  say "Created secrets/api_keys. Its first line is the key for your callers."
fi

if [[ ! -e .env ]]; then
  sed "s|^#TOOLS_USER=.*|TOOLS_USER=$(id -u):$(id -g)|" .env.example > .env
  say "Created .env from .env.example."
fi

image=$(sed -n 's/^TRITON_IMAGE=//p' .env)
if [[ $image != *@sha256:* ]]; then
  if digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}' 2> /dev/null) \
    && [[ $digest == sha256:* ]]; then
    sed -i "s|^TRITON_IMAGE=.*|TRITON_IMAGE=$image@$digest|" .env
    say "Pinned Triton to $image@$digest."
  else
    say "Could not look up the digest of $image. Pin it in .env before you go to production."
  fi
fi

models=$(sed -n 's/^MODELS_DIR=//p' .env)
if [[ ! -d $models ]]; then
  mkdir -p "$models" 2> /dev/null || sudo install -d -o "$(id -u)" -g "$(id -g)" "$models"
  say "Created the folder $models."
fi
