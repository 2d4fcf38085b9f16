#!/bin/sh
# Becomes a Sentinel of docker-compose.yml: sh start.sh CONFIGURATION
#
# HOLDFAST_REDIS_PASSWORD        of the user holdfast, who may ask and listen
# HOLDFAST_REDIS_ADMIN_PASSWORD  of the other Sentinels, of people, and of the user sentinel of each Redis
# ANNOUNCE                       the name by which all others reach this Sentinel
set -eu
umask 077
here=$(dirname "$0")

hash_of() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
{
    sed "s/^user holdfast on /&#$(hash_of "$HOLDFAST_REDIS_PASSWORD") /" "$here/../sentinel-users.acl"
    echo "user admin on #$(hash_of "$HOLDFAST_REDIS_ADMIN_PASSWORD") ~* &* +@all"
} >/data/users.acl

# A Sentinel keeps what it learns in its own configuration: who is the primary, which replicas and Sentinels there are. So
# the file is copied once, and stays; the passwords are those of this start.
[ -e /data/sentinel.conf ] || cp "$1" /data/sentinel.conf
{
    grep -v -e '^sentinel auth-pass ' -e '^sentinel sentinel-pass ' -e '^sentinel announce-ip ' /data/sentinel.conf
    echo "sentinel auth-pass holdfast $HOLDFAST_REDIS_ADMIN_PASSWORD"
    echo "sentinel sentinel-pass $HOLDFAST_REDIS_ADMIN_PASSWORD"
    echo "sentinel announce-ip $ANNOUNCE"
} >/data/sentinel.conf.new
mv /data/sentinel.conf.new /data/sentinel.conf

exec redis-server /data/sentinel.conf --sentinel
