#!/bin/sh
# Before a node is stopped on purpose: lets a replica take its slots over, so that nobody has to notice that it is gone.
#
# HOLDFAST_REDIS_ADMIN_PASSWORD  of the user admin
set -eu
export REDISCLI_AUTH="$HOLDFAST_REDIS_ADMIN_PASSWORD"

# Seconds for the replica to take over. Without a replica that can, the node is stopped all the same.
patience=10

cli() { redis-cli --user admin --no-auth-warning "$@"; }
id=$(cli cluster myid)
replica=$(cli cluster nodes | sed -n "s/^[^ ]* [^ ]*,\([^ ,]*\) slave $id .* connected\$/\1/p" | sed -n 1p)
if [ -z "$replica" ]; then
    exit
fi
echo "$replica takes over: $(cli -h "$replica" cluster failover)"
while [ $patience -gt 0 ] && cli cluster nodes | grep -q 'myself,master'; do
    patience=$((patience - 1))
    sleep 1
done
