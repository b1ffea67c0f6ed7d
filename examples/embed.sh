#!/usr/bin/env bash
# Embed the lines of a file, or of standard input, with curl, and python3 for the JSON.
#
#   examples/embed.sh lines.txt > vectors.jsonl
#   echo "Why does dough grow?" | INPUT_TYPE=query examples/embed.sh
#
# Settings: QWEN3_TRITON_URL, QWEN3_TRITON_API_KEY, INPUT_TYPE (document or query), BATCH (lines per request).
set -euo pipefail

url="${QWEN3_TRITON_URL:-http://localhost:8101}"
request='import json, sys
texts = sys.stdin.read().removesuffix("\n").split("\n")
json.dump({"texts": texts, "input_type": sys.argv[1]}, sys.stdout)'
vectors='import json, sys
for vector in json.load(sys.stdin)["embeddings"]:
    print(json.dumps(vector))'

headers() { # as a file, because every user of the machine can read a process's arguments
    echo 'header = "content-type: application/json"'
    if [[ -n ${QWEN3_TRITON_API_KEY:-} ]]; then
        echo "header = \"authorization: Bearer $QWEN3_TRITON_API_KEY\""
    fi
}

# curl retries after 408, 429 and 5xx, and honors Retry-After.
while mapfile -t -n "${BATCH:-256}" lines && ((${#lines[@]})); do
    if ! answer=$(printf '%s\n' "${lines[@]}" | python3 -c "$request" "${INPUT_TYPE:-document}" |
        curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --max-time 130 \
            --config <(headers) --data-binary @- "$url/embed"); then
        echo "$answer" >&2
        exit 1
    fi
    printf '%s' "$answer" | python3 -c "$vectors"
done <"${1:-/dev/stdin}"
