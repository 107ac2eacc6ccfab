#!/bin/sh
# Wait for this node's decision, in an image that has no toolkit-agent: an init container's command.
file=${TOOLKIT_DECISION_FILE:-/run/nvidia/validations/.toolkit-ctr-ready}
until grep -qx 'TOOLKIT_STATUS_VERSION=1' "$file" 2>/dev/null &&
    grep -qx "TOOLKIT_BOOT_ID=$(cat /proc/sys/kernel/random/boot_id)" "$file"; do
    echo "waiting for the decision in $file" >&2
    sleep 5
done
cat "$file"
