//! Join tokens.

use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_token_is_shown_once_and_listed_without_its_secret() {
    let world = World::new().await;
    let made = world.post("/v1/join-tokens", json!({"description": "rack 4", "maxUses": 3})).await;
    assert_eq!(made.status, 201);
    let text = made.body["token"].as_str().unwrap();
    let listed = world.get("/v1/join-tokens").await.body;
    assert_eq!(listed["items"][0]["description"], "rack 4");
    assert_eq!(listed["items"][0]["state"], "Active");
    assert!(!listed.to_string().contains(text));
    assert!(!listed.to_string().contains(&crate::world::psk(text)));
    assert_eq!(world.delete("/v1/join-tokens/none").await.status, 404);
}

#[tokio::test]
async fn impossible_tokens_are_refused_with_the_field() {
    let world = World::new().await;
    for (body, word) in [
        (json!({"expiresIn": "0s"}), "expiresIn"),
        (json!({"expiresIn": "9999d"}), "expiresIn"),
        (json!({"expiresIn": "soon"}), "length of time"),
        (json!({"maxUses": 0}), "maxUses"),
        (json!({"maxUse": 1}), "maxUse"),
    ] {
        let answer = world.post("/v1/join-tokens", body.clone()).await;
        assert!(matches!(answer.status, 400 | 422), "{body}");
        assert!(answer.body["detail"].as_str().unwrap().contains(word), "{}", answer.body);
    }
}
