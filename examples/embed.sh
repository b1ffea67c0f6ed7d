#!/usr/bin/env bash
# Embed the lines of a file, or of standard input, with nothing but curl and python3 for the JSON.
#
#   examples/embed.sh lines.txt > vectors.jsonl
#   echo "Why does dough grow?" | INPUT_TYPE=query examples/embed.sh
#
# Settings: QWEN3_TRITON_URL, QWEN3_TRITON_API_KEY, INPUT_TYPE (document or query), BATCH (lines in a request).
set -euo pipefail

url="${QWEN3_TRITON_URL:-http://localhost:8101}"
request='import json, sys
texts = sys.stdin.read().removesuffix("\n").split("\n")
json.dump({"texts": texts, "input_type": sys.argv[1]}, sys.stdout)'
vectors='import json, sys
for vector in json.load(sys.stdin)["embeddings"]:
    print(json.dumps(vector))'

headers() { # in a file of its own, since the arguments of a process are for all to see
    echo 'header = "content-type: application/json"'
    if [[ -n ${QWEN3_TRITON_API_KEY:-} ]]; then
        echo "header = \"authorization: Bearer $QWEN3_TRITON_API_KEY\""
    fi
}

# curl itself tries again after 408, 429 and 5xx, and waits as long as Retry-After says.
while mapfile -t -n "${BATCH:-256}" lines && ((${#lines[@]})); do
    if ! answer=$(printf '%s\n' "${lines[@]}" | python3 -c "$request" "${INPUT_TYPE:-document}" |
        curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --max-time 130 \
            --config <(headers) --data-binary @- "$url/embed"); then
        echo "$answer" >&2
        exit 1
    fi
    printf '%s' "$answer" | python3 -c "$vectors"
done <"${1:-/dev/stdin}"
