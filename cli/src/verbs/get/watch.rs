//! `windlass get --watch`: what there is, then every change.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Query, malformed, name_of};
use crate::client::{Client, Followed};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::table::{Cell, Column, Layout};
use crate::output::{Format, name, yaml};
use crate::verbs::Context;
use crate::view;

impl Query {
    /// Prints what there is, then a line for each change, until nobody reads any more or the server is gone.
    pub(super) async fn watch(&self, context: &Context, client: &Client) -> Result<Exit, Failure> {
        let console = context.console;
        let columns = view::columns(self.kind, self.width);
        let mut stream = client.watch(self.kind, self.namespace.as_deref(), &self.filter);
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut layout: Option<Layout> = None;
        let mut fresh: BTreeMap<String, Known> = BTreeMap::new();
        let mut synced = false;
        while let Some(item) = stream.next().await {
            let event = match item? {
                Followed::Event(event) => event,
                Followed::Lost(reason) => {
                    console.warn(format!("the connection is lost and is tried again: {reason}"));
                    // The server tells everything again after this.
                    synced = false;
                    fresh.clear();
                    continue;
                }
                Followed::Restored => {
                    console.note("The connection is back.");
                    continue;
                }
            };
            if event.event == "synced" {
                synced = true;
                let (changed, gone) = difference(&known, &fresh);
                known = std::mem::take(&mut fresh);
                let objects: Vec<Value> = changed.iter().map(|key| known[key].object.clone()).collect();
                if layout.is_none() && self.is_table() {
                    let rows = self.rows(&objects)?;
                    let new = Layout::with_room(&columns, &rows, console.width());
                    console.data(&new.heading(&columns))?;
                    layout = Some(new);
                }
                for object in &objects {
                    self.print_change(context, &columns, layout.as_ref(), object, false)?;
                }
                for object in &gone {
                    self.print_change(context, &columns, layout.as_ref(), object, true)?;
                }
                continue;
            }
            let deleted = match event.event.as_str() {
                "added" | "modified" => false,
                "deleted" => true,
                // A newer server may tell more.
                _ => continue,
            };
            let object: Value = serde_json::from_str(&event.data).map_err(|source| malformed(&source))?;
            if !self.is_wanted(&object) {
                continue;
            }
            let key = key_of(&object);
            let entry = Known::new(object);
            if !synced {
                if deleted {
                    fresh.remove(&key)
                } else {
                    fresh.insert(key, entry)
                };
                continue;
            }
            let object = entry.object.clone();
            let unchanged = known.get(&key).is_some_and(|old| old.is_same(&entry));
            if deleted {
                known.remove(&key)
            } else {
                known.insert(key, entry)
            };
            if deleted || !unchanged {
                self.print_change(context, &columns, layout.as_ref(), &object, deleted)?;
            }
        }
        Ok(Exit::Success)
    }

    const fn is_table(&self) -> bool {
        match self.output {
            Format::Table | Format::Wide => true,
            Format::Json | Format::Yaml | Format::Name => false,
        }
    }

    fn print_change(
        &self,
        context: &Context,
        columns: &[Column],
        layout: Option<&Layout>,
        object: &Value,
        deleted: bool,
    ) -> Result<(), Failure> {
        let console = context.console;
        match self.output {
            Format::Table | Format::Wide => {
                let mut rows = self.rows(std::slice::from_ref(object))?;
                let mut row = rows.pop().unwrap_or_default();
                if deleted && let Some(index) = columns.iter().position(Column::shows_state) {
                    row[index] = Cell::notable("deleted");
                }
                layout.map_or(Ok(()), |layout| console.data(&layout.line(&row)))
            }
            // One line for each change, so that a program can read it line by line.
            Format::Json => console.line(object.to_string()),
            Format::Yaml => console.data(&format!("---\n{}", yaml::format(object))),
            Format::Name => console.line(name::format(self.kind, name_of(object))),
        }
    }
}

/// An object that was told, and what tells whether it has changed.
struct Known {
    version: Option<String>,
    object: Value,
}

impl Known {
    fn new(object: Value) -> Self {
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        Self { version, object }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.version, &other.version) {
            (Some(one), Some(two)) => one == two,
            (None, _) | (_, None) => self.object == other.object,
        }
    }
}

/// What is new or changed, and what is gone.
fn difference(old: &BTreeMap<String, Known>, new: &BTreeMap<String, Known>) -> (Vec<String>, Vec<Value>) {
    let changed = new
        .iter()
        .filter(|(key, entry)| !old.get(*key).is_some_and(|before| before.is_same(entry)))
        .map(|(key, _)| key.clone())
        .collect();
    let gone = old
        .iter()
        .filter(|(key, _)| !new.contains_key(*key))
        .map(|(_, entry)| entry.object.clone())
        .collect();
    (changed, gone)
}

/// What tells an object from all others of its kind, also from an earlier one of the same name.
fn key_of(object: &Value) -> String {
    let text = |place: &str| object.pointer(place).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}/{}", text("/metadata/namespace"), name_of(object), text("/metadata/uid"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_changed_is_told_again_after_the_connection_was_lost() {
        let object =
            |name: &str, version: &str| json!({"metadata": {"name": name, "resourceVersion": version}});
        let map = |objects: &[Value]| -> BTreeMap<String, Known> {
            objects.iter().map(|object| (key_of(object), Known::new(object.clone()))).collect()
        };
        let old = map(&[object("same", "1"), object("changed", "1"), object("gone", "1")]);
        let new = map(&[object("same", "1"), object("changed", "2"), object("new", "3")]);
        let (changed, gone) = difference(&old, &new);
        assert_eq!(changed, ["/changed/", "/new/"]);
        assert_eq!(gone, [object("gone", "1")]);
    }
}
