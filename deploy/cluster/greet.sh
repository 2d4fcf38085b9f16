#!/bin/sh
# Introduces this node to all others, and then becomes a Redis: sh greet.sh CONFIGURATION...
#
# The nodes of a cluster know each other by address, and remember those in a file. Where names keep and addresses change
# (containers), a cluster of which all nodes were stopped would never find itself again. So each node, when it starts,
# meets every other by the address that its name has now. Meeting a node that is known corrects its address.
#
# CLUSTER_NODES                  the names of all nodes
# HOLDFAST_REDIS_ADMIN_PASSWORD  of the user admin
set -eu
here=$(dirname "$0")
export REDISCLI_AUTH="$HOLDFAST_REDIS_ADMIN_PASSWORD"

greet() {
    until address=$(getent ahostsv4 "$1" | sed -n '1s/ .*//p') && [ -n "$address" ] &&
        redis-cli --user admin --no-auth-warning cluster meet "$address" 6379 2>/dev/null | grep -q OK; do
        sleep 1
    done
}

# All at once: one that is not there must not keep the others from meeting.
greet_all() {
    for name in $CLUSTER_NODES; do
        greet "$name" &
    done
    wait
}

greet_all &
exec sh "$here/../redis/start.sh" "$@"
