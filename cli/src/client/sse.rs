//! Server-sent events, as the HTML standard defines the stream: pure, bytes in, events out.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// The kind; `message` where the server did not say.
    pub(crate) event: String,
    /// The id that a later request can resume after; the last one that was sent, also with an earlier event.
    pub(crate) id: Option<String>,
    /// The data, its lines joined by line breaks.
    pub(crate) data: String,
}

/// The most bytes that one event may have. A log record holds at most 64 KiB of output, an object at most 1.5 MiB.
const MAX_EVENT: usize = 16 * 1024 * 1024;

/// The server sent an event that is larger than anything it should send.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than 16 MiB")]
pub(crate) struct TooLarge;

/// Takes a stream apart. Chunks may end anywhere, also inside a character.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return, so that a line feed now belongs to it.
    after_return: bool,
    /// Something but the byte-order mark has come.
    begun: bool,
    event: String,
    data: String,
    has_data: bool,
    last_id: Option<String>,
}

impl Parser {
    /// Takes a chunk; appends the events that it completes.
    pub(crate) fn push(&mut self, chunk: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        for &byte in chunk {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(events),
                byte if self.line.len() + self.data.len() < MAX_EVENT => self.line.push(byte),
                _ => return Err(TooLarge),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        let line = if self.begun { &*line } else { line.strip_prefix('\u{feff}').unwrap_or(&line) };
        self.begun = true;
        if line.is_empty() {
            self.dispatch(events);
            return;
        }
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (line, ""),
        };
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            // Comments (an empty field name), `retry` and unknown fields carry nothing that we use.
            _ => {}
        }
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let event = if event.is_empty() { "message".to_owned() } else { event };
            events.push(Event { event, id: self.last_id.clone(), data });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk, &mut events).unwrap();
        }
        events
    }

    fn event(event: &str, id: Option<&str>, data: &str) -> Event {
        Event { event: event.into(), id: id.map(Into::into), data: data.into() }
    }

    #[test]
    fn fields_comments_and_ids_follow_the_standard() {
        let stream = b"\xef\xbb\xbf: keep-alive\n\nevent: added\nid: 7\ndata: {\"a\":1}\n\ndata:one\ndata: two\r\n\r\n\
            event: synced\ndata\n\nevent: ignored without data\n\nretry: 5\nunknown: x\ndata:  lead\r\rdata: cut off";
        assert_eq!(
            parse(&[stream]),
            [
                event("added", Some("7"), "{\"a\":1}"),
                event("message", Some("7"), "one\ntwo"),
                event("synced", Some("7"), ""),
                event("message", Some("7"), " lead"),
            ]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        let chunk = vec![b'x'; 1 << 20];
        let refused = (0..32).find_map(|_| parser.push(&chunk, &mut events).err());
        assert_eq!(refused, Some(TooLarge));
    }

    proptest! {
        #[test]
        fn the_places_where_chunks_end_do_not_matter(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(String::new()),
                    "(event|data|id|retry|x)(:| |: )?[a-zž日: ]{0,12}",
                    ":[a-z]{0,5}",
                ],
                0..30,
            ),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 30),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: Vec<u8> =
                lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_bytes(), end.as_bytes()].concat()).collect();
            let whole = parse(&[&stream]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), whole.clone());
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(parse(&bytes), whole);
        }

        #[test]
        fn any_data_survives(data in "[^\r\n\u{feff}]{1,200}", kind in "[a-z]{1,10}") {
            let stream = format!("event: {kind}\ndata: {data}\n\n");
            prop_assert_eq!(parse(&[stream.as_bytes()]), [event(&kind, None, &data)]);
        }
    }
}
