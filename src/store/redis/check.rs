//! Tries what the gateway does with Redis, for `doctor`.

use std::time::Duration;

use redis::{Cmd, Script, Value, cmd};

use crate::base::clock::millis;
use crate::base::hex;
use crate::config::RedisOptions;
use crate::store::redis::connection::{RedisConnection, connect};
use crate::store::redis::heartbeat::ensure_primary;
use crate::store::redis::listing::{scan_targets, send_to};
use crate::store::redis::{CLAIM, StoreError, StoreResult, TOUCH, event_feed, redis_command};

/// The keys expire if they cannot be deleted. Much longer than all steps take.
const KEY_TTL: Duration = Duration::from_secs(60);

/// Why Redis cannot be used.
#[derive(Debug)]
pub struct RedisFailure {
    /// The message of the server or of the client library, without secrets.
    pub message: String,
    /// The options to change.
    pub fix: &'static str,
}

/// Connects to the first node that responds, as the gateway does, and tries each of its commands on keys that it removes
/// again: a user may lack the permission for one, and a server may be full, a replica or too old.
pub async fn check(options: &RedisOptions) -> Result<(), RedisFailure> {
    let mut result = Ok(());
    for attempt in 0..options.nodes.len() {
        let response = async {
            let mut connection = connect(options, attempt).await?;
            let mut random = [0; 8];
            aws_lc_rs::rand::fill(&mut random).expect("the system's random source works");
            let prefix = format!("{}doctor:{}:", options.prefix, hex::encode(&random));
            let keys = ["t", "marks", "events"].map(|name| format!("{prefix}{name}"));
            let tried = try_commands(&mut connection, &keys).await;
            let mut removed = Ok(());
            for key in &keys {
                removed = removed.and(run(&mut connection, redis_command("DEL", key)).await);
            }
            tried.and(removed)
        }
        .await;
        let Err(error) = response else { return Ok(()) };
        result = Err(RedisFailure { fix: fix_for(&error), message: error.to_string() });
    }
    result
}

/// Executes the commands and scripts of [`super::RedisSession`]. Each command of a script is tried alone before, as
/// Redis 7.0 does not say which command of a script the user must not execute. The permission to set an expiry is tried
/// before a key without one exists.
async fn try_commands(connection: &mut RedisConnection, keys: &[String; 3]) -> StoreResult<()> {
    let [token, marks, events] = keys;
    let ttl = millis(KEY_TTL);
    for command in [
        redis_command("SET", (token, "value", "PX", ttl)),
        redis_command("GET", token),
        redis_command("MGET", token),
        redis_command("EXISTS", token),
        redis_command("SETRANGE", (token, 0, "used")),
        redis_command("PTTL", token),
        redis_command("PEXPIRE", (token, ttl)),
        redis_command("SET", (token, "tombstone", "XX", "KEEPTTL")),
        redis_command("HSET", (marks, "field", "value")),
        redis_command("PEXPIRE", (marks, ttl)),
        redis_command("HSCAN", (marks, 0)),
        redis_command("HDEL", (marks, "field")),
        redis_command("ZADD", (events, "GT", 1, "user")),
        redis_command("PEXPIRE", (events, ttl)),
        redis_command("ZREMRANGEBYSCORE", (events, "-inf", "(1")),
        redis_command("ZCARD", events),
        redis_command("ZRANGE", (events, 0, 0, "REV", "WITHSCORES")),
        cmd("TIME"),
    ] {
        run(connection, command).await?;
    }
    for target in scan_targets(connection).await? {
        let scan = redis_command("SCAN", (0, "MATCH", token, "COUNT", 1));
        send_to(connection, scan, &target).await?;
    }
    if let RedisConnection::One(one) = connection {
        ensure_primary(cmd("ROLE").query_async(one).await?)?;
    }
    let [claim, touch, read, write] = [CLAIM, TOUCH, event_feed::READ, event_feed::WRITE].map(Script::new);
    for script in [&claim, &touch, &read, &write] {
        script.load_async(connection).await?;
    }
    let _: Value = claim.key(token).arg("").arg("value").arg(ttl).invoke_async(connection).await?;
    let _: Value = touch.key(token).arg("used").arg(2 * ttl).invoke_async(connection).await?;
    let _: Value = write.key(events).arg("event").arg(ttl).invoke_async(connection).await?;
    let _: Value = read.key(events).arg(0).arg(ttl).arg(0).arg(0).arg(1).invoke_async(connection).await?;
    Ok(())
}

async fn run(connection: &mut RedisConnection, command: Cmd) -> StoreResult<()> {
    Ok(command.query_async::<Value>(connection).await.map(drop)?)
}

fn fix_for(error: &StoreError) -> &'static str {
    let message = error.to_string();
    let (kind, code) = match error {
        StoreError::Redis(error) => (Some(error.kind()), error.code()),
        _ => (None, None),
    };
    match (kind, code) {
        (Some(redis::ErrorKind::AuthenticationFailed), _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            "store.username, store.password (and the ACL of that user)"
        }
        (_, Some("NOPERM")) => {
            "the ACL of store.username, which needs the keys of store.prefix; docs/tokens.md has one"
        }
        (_, Some("READONLY")) => "store.urls (the primary server)",
        _ if message.contains("DB index") => "store.database",
        _ if message.contains("cluster support disabled") || message.contains("sentinel node") => "store.mode",
        _ => "store.urls (address, port, rediss:// for TLS), store.ca_file, or start Redis",
    }
}
