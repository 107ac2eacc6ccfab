#!/bin/sh
# Wait for this node's decision, in an image that has no toolkit-agent: an init container's command.
# Prints the decision.
set -u

# shellcheck source-path=SCRIPTDIR source=decision.sh
. "$(dirname "$0")/decision.sh"

until read_decision; do
    say_waiting 6 # every half a minute
    sleep 5
done
printf %s "$new_text"
