#!/usr/bin/env bash
# Make deploy/.env and deploy/secrets/ for compose.yaml. What is there already stays as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Compose mounts these files with the owner and mode that they have here, and its services run under accounts of
# their own. So the files are readable, and the folder, which is not mounted, is closed.
mkdir -p secrets
chmod 700 secrets
for name in metrics_key postgres_password grafana_password; do
  if [[ ! -s secrets/$name ]]; then
    secret > "secrets/$name"
    chmod 444 "secrets/$name"
    say "Made secrets/$name."
  fi
done
if [[ ! -s secrets/api_keys ]]; then
  {
    secret
    printf '\n# Prometheus shows this one; it is in metrics_key too.\n%s\n' "$(cat secrets/metrics_key)"
  } > secrets/api_keys
  chmod 444 secrets/api_keys
  say "Made secrets/api_keys: the first line is for your callers."
fi

if [[ ! -e .env ]]; then
  sed "s|^#TOOLS_USER=.*|TOOLS_USER=$(id -u):$(id -g)|" .env.example > .env
  say "Made .env from .env.example."
fi

image=$(sed -n 's/^TRITON_IMAGE=//p' .env)
if [[ $image != *@sha256:* ]]; then
  if digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}' 2> /dev/null) \
    && [[ $digest == sha256:* ]]; then
    sed -i "s|^TRITON_IMAGE=.*|TRITON_IMAGE=$image@$digest|" .env
    say "Pinned Triton to $image@$digest."
  else
    say "Could not ask the registry for the digest of $image: pin it in .env before you rely on it."
  fi
fi

models=$(sed -n 's/^MODELS_DIR=//p' .env)
if [[ ! -d $models ]]; then
  mkdir -p "$models" 2> /dev/null || sudo install -d -o "$(id -u)" -g "$(id -g)" "$models"
  say "Made the folder $models."
fi
