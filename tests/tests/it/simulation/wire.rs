//! What a message looks like to the other side when the two are not of one version: fields that nobody knows, and
//! optional ones that are not there.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::Peer;

/// Fields that a version may not have known: the protocol gives each of them a meaning when it is absent.
const OPTIONAL: [&str; 4] = ["not_ready", "stopping", "send_capability", "detail"];

/// How an agent and the controller understand each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) peer: Peer,
    pub(crate) newer_controller: bool,
}

impl Wire {
    /// A request as the controller understands it.
    pub(crate) fn request<T: Serialize + DeserializeOwned + Clone>(self, request: &T) -> T {
        match self.peer {
            Peer::Same => request.clone(),
            Peer::Older => changed(request, leave_out),
            Peer::Newer => changed(request, add_unknown),
        }
    }

    /// An answer as the agent understands it.
    pub(crate) fn answer<T: Serialize + DeserializeOwned>(self, answer: T) -> T {
        let answer = if self.newer_controller { changed(&answer, add_unknown) } else { answer };
        match self.peer {
            Peer::Same | Peer::Newer => answer,
            Peer::Older => changed(&answer, leave_out),
        }
    }
}

fn changed<T: Serialize + DeserializeOwned>(message: &T, change: fn(&mut Value)) -> T {
    let mut value = serde_json::to_value(message).expect("a message is plain data");
    change(&mut value);
    serde_json::from_value(value)
        .expect("the protocol ignores what it does not know and misses nothing optional")
}

fn leave_out(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OPTIONAL.contains(&name.as_str()));
            fields.values_mut().for_each(leave_out);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds a field to every object of the protocol. Maps of people's own keys and a job's manifest are not among them.
fn add_unknown(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if !matches!(name.as_str(), "spec" | "labels" | "text" | "base64" | "body") {
                    add_unknown(field);
                }
            }
            fields.insert("x_from_the_future".to_owned(), json!({"deep": [1, 2, 3]}));
        }
        Value::Array(items) => items.iter_mut().for_each(add_unknown),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
