//! Join tokens: what lets a new host become a node.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use windlass_crds::Span;
use windlass_store::JoinTokenRow;

use super::App;
use super::extract::{self, Operator, Path};
use crate::auth;
use crate::error::{ApiError, Code};

/// How long a token works that says nothing else.
const DEFAULT_LIFE: Span = Span::from_secs(24 * 3600);
/// The longest life of a token: a year.
const MAX_LIFE: Span = Span::from_secs(366 * 24 * 3600);

/// What a new token shall be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewJoinToken {
    /// What it is for.
    #[serde(default)]
    pub(crate) description: String,
    /// How long it works.
    #[serde(default)]
    pub(crate) expires_in: Option<Span>,
    /// How many nodes it can join.
    #[serde(default)]
    pub(crate) max_uses: Option<u32>,
    /// The node whose identity the next agent takes over.
    #[serde(default)]
    pub(crate) replace_node: Option<String>,
}

/// Makes a token; the text is returned and nowhere kept.
pub(crate) async fn create(app: &App, new: NewJoinToken) -> Result<(String, JoinTokenRow), ApiError> {
    let refused = |detail: String| ApiError::new(Code::Invalid, detail);
    let life = new.expires_in.unwrap_or(DEFAULT_LIFE);
    if life.millis() == 0 || life > MAX_LIFE {
        return Err(refused(format!("expiresIn: {life} is not between 1ms and {MAX_LIFE}")));
    }
    if new.max_uses == Some(0) {
        return Err(refused("maxUses: 0 would never join a node; leave it out for any number".to_owned()));
    }
    if new.description.len() > 255 {
        return Err(refused("description: more than 255 bytes".to_owned()));
    }
    if let Some(name) = &new.replace_node
        && app.store.get_node(name).await?.is_none()
    {
        return Err(refused(format!("replaceNode: there is no node `{name}`")));
    }
    let now = app.clock.now();
    let secret = auth::secret_text("", app.ids.secret());
    let row = JoinTokenRow {
        id: app.ids.uid(now),
        secret_hash: auth::secret_hash(&secret),
        description: new.description,
        expires_at: now
            .checked_add(SignedDuration::from_millis(i64::try_from(life.millis()).unwrap_or(i64::MAX)))
            .ok(),
        // Taking an identity over is for one agent only.
        max_uses: if new.replace_node.is_some() { Some(1) } else { new.max_uses },
        uses: 0,
        replaces: new.replace_node,
        created_at: now,
        revoked_at: None,
    };
    app.store.create_join_token(now, row.clone()).await?;
    tracing::info!(token.id = %row.id, "join token created");
    Ok((auth::join_token(&app.base_url, &app.ca_fingerprint, &secret), row))
}

pub(super) async fn post(
    State(app): State<App>,
    _: Operator,
    extract::Json(new): extract::Json<NewJoinToken>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (token, row) = create(&app, new).await?;
    let mut value = present(&row, app.clock.now());
    value["token"] = json!(token);
    value["server"] = json!(app.base_url);
    Ok((StatusCode::CREATED, Json(value)))
}

pub(super) async fn list(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    let now = app.clock.now();
    let items: Vec<_> = app.store.list_join_tokens().await?.iter().map(|row| present(row, now)).collect();
    Ok(Json(json!({"kind": "JoinTokenList", "items": items})))
}

pub(super) async fn revoke(
    State(app): State<App>,
    _: Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if app.store.revoke_join_token(app.clock.now(), &id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("join token", &id))
    }
}

fn present(row: &JoinTokenRow, now: Timestamp) -> Value {
    let state = if row.revoked_at.is_some() {
        "Revoked"
    } else if row.expires_at.is_some_and(|at| at <= now) {
        "Expired"
    } else if row.max_uses.is_some_and(|max| row.uses >= max) {
        "UsedUp"
    } else {
        "Active"
    };
    json!({
        "id": row.id,
        "description": row.description,
        "state": state,
        "createdAt": row.created_at,
        "expiresAt": row.expires_at,
        "maxUses": row.max_uses,
        "uses": row.uses,
        "replaceNode": row.replaces,
        "revokedAt": row.revoked_at,
    })
}
