#!/bin/sh
# Becomes a Redis of docker-compose.yml or of kubernetes/: sh start.sh CONFIGURATION...
#
# The configurations are put together in the order in which they are named, and what only the environment knows is added:
#
# HOLDFAST_REDIS_PASSWORD        of the user holdfast
# HOLDFAST_REDIS_ADMIN_PASSWORD  of the users admin, replica and sentinel
# ANNOUNCE                       under Sentinel and in a cluster: the name by which all others reach this node
# FIRST_PRIMARY                  under Sentinel: the node that the others follow at their first start
set -eu
umask 077
here=$(dirname "$0")

hash_of() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
server=$(hash_of "$HOLDFAST_REDIS_PASSWORD")
admin=$(hash_of "$HOLDFAST_REDIS_ADMIN_PASSWORD")

# admin is for people and for form.sh. replica and sentinel have the rights that Redis' own documentation gives them.
{
    sed "s/^user holdfast on /&#$server /" "$here/../redis-users.acl"
    echo "user admin on #$admin ~* &* +@all"
    echo "user replica on #$admin -@all +psync +replconf +ping"
    echo "user sentinel on #$admin allchannels -@all +multi +exec +slaveof +ping +subscribe +config|rewrite +role +publish" \
        "+info +client|setname +client|kill +script|kill"
} >/data/users.acl

# Sentinel has Redis write into its configuration whom it follows since a failover. That is kept: a primary that comes
# back after it has been replaced must not believe that it still is one. All else is written anew at each start.
follows=
if [ -e /data/redis.conf ]; then
    follows=$(grep '^replicaof ' /data/redis.conf || :)
elif [ -n "${FIRST_PRIMARY:-}" ] && [ "$FIRST_PRIMARY" != "$ANNOUNCE" ]; then
    follows="replicaof $FIRST_PRIMARY 6379"
fi

# In a file, since the arguments of a process can be read by others.
{
    cat "$@"
    echo "masteruser replica"
    echo "masterauth $HOLDFAST_REDIS_ADMIN_PASSWORD"
    if grep -q '^cluster-enabled yes' "$@"; then
        echo "cluster-announce-hostname $ANNOUNCE"
    elif [ -n "${ANNOUNCE:-}" ]; then
        echo "replica-announce-ip $ANNOUNCE"
        echo "$follows"
    fi
} >/data/redis.conf.new
mv /data/redis.conf.new /data/redis.conf

exec redis-server /data/redis.conf
