//! Paths of fields: `spec.steps[0].env.PATH`, `spec.nodeSelector[windlass.dev/arch]`.

use std::fmt;

use super::tree::{Data, Mark, Node};

/// A path as a chain back to the root, so that walking down costs nothing until there is something to report.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(path: &Path<'_>, text: &mut String) {
            match path {
                Path::Root => {}
                Path::Key(parent, key) => {
                    write(parent, text);
                    push_key(text, key);
                }
                Path::Index(parent, index) => {
                    write(parent, text);
                    push_index(text, *index);
                }
            }
        }
        let mut text = String::new();
        write(self, &mut text);
        f.write_str(&text)
    }
}

/// Adds a key to the path of a field: after a dot where it is a plain word, otherwise in brackets.
pub fn push_key(path: &mut String, key: &str) {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if !plain {
        path.push('[');
        path.extend(key.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
        path.push(']');
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Adds the index of an item.
pub(crate) fn push_index(path: &mut String, index: usize) {
    path.push_str(&format!("[{index}]"));
}

/// Where the value of a path is written, or the innermost value around it that is written.
pub(crate) fn locate(root: &Node, path: &str) -> Mark {
    let mut node = root;
    let mut mark = root.mark;
    let mut rest = path;
    while !rest.is_empty() {
        let (segment, tail) = match rest.strip_prefix('[') {
            // Keys may hold brackets themselves; the last one before a separator ends the segment.
            Some(inside) => {
                let end = inside
                    .match_indices(']')
                    .map(|(at, _)| at)
                    .find(|at| matches!(inside.as_bytes().get(at + 1), None | Some(b'.' | b'[')))
                    .unwrap_or(inside.len());
                (&inside[..end], inside.get(end + 1..).unwrap_or(""))
            }
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = tail.strip_prefix('.').unwrap_or(tail);
        let next = match &node.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == segment).map(|entry| {
                // A list or map begins on a line below its key; people look for the key.
                let at = if matches!(entry.value.data, Data::List(_) | Data::Map(_)) {
                    entry.mark
                } else {
                    entry.value.mark
                };
                (&entry.value, at)
            }),
            Data::List(items) => {
                segment.parse::<usize>().ok().and_then(|index| items.get(index)).map(|item| (item, item.mark))
            }
            Data::Null | Data::Boolean(_) | Data::Number(_) | Data::Text(_) => None,
        };
        let Some((inner, at)) = next else { return mark };
        (node, mark) = (inner, at);
    }
    mark
}
