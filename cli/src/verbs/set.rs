//! `windlass set`: settings of things that are not declared.

use super::Context;
use crate::client::Filter;
use crate::client::model::{Queue, QueueSettings};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::Kind;

/// Change settings.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Change how a queue's jobs are chosen. A queue needs no setting to be used.
    Queue(QueueArgs),
}

#[derive(clap::Args, Debug)]
struct QueueArgs {
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,

    /// Give the queue this share of what runs, against the weights of the others; 1 is what every queue has at first.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000), required_unless_present = "concurrency")]
    weight: Option<u32>,

    /// Let at most this many of its jobs run at once, `none` for any number.
    #[arg(long, value_name = "NUMBER|none")]
    concurrency: Option<Limit>,
}

/// A limit that may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u32>);

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse()
            .map(|limit| Self(Some(limit)))
            .map_err(|_| format!("`{text}` is neither a number nor `none`"))
    }
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let What::Queue(QueueArgs { name, weight, concurrency }) = &args.what;
    let (_, client) = context.connect()?;
    // What is not named stays as it is.
    let queues: Vec<Queue> = client.list(Kind::Queue, None, &Filter::default()).await?;
    let before = queues.iter().find(|queue| queue.name == *name);
    let settings = QueueSettings {
        weight: weight.or(before.map(|queue| queue.weight)).unwrap_or(1),
        concurrency: match concurrency {
            Some(Limit(limit)) => *limit,
            None => before.and_then(|queue| queue.concurrency),
        },
    };
    if name.is_empty() {
        return Err(Report::new(Exit::Usage, "the queue's name is empty").into());
    }
    client.set_queue(name, &settings).await?;
    let limit = settings.concurrency.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    context.console.line(format!("queue/{name} set: weight {}, concurrency {limit}", settings.weight))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!("none".parse(), Ok(Limit(None)));
        assert_eq!("0".parse(), Ok(Limit(Some(0))));
        for text in ["", "-1", "many", "1.5"] {
            assert!(text.parse::<Limit>().unwrap_err().contains("neither"), "{text}");
        }
    }
}
