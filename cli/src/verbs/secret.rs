//! `windlass secret`: values that jobs are given and nobody is shown.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use windlass_controller::clock::RandomIds;
use windlass_controller::secrets;
use windlass_crds::protocol::SecretBytes;
use windlass_crds::secret::MAX_VALUE_BYTES;

use super::Context;
use crate::client::model::{Secret, SecretKey, SecretRequest};
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, human, json, yaml};

/// Keep values that jobs are given and nobody is shown: passwords, tokens, keys.
///
/// A step names the secrets that it needs, as environment variables or as files; only that step gets them. Values are
/// sealed in the database, and masked in what a step writes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    Set(SetArgs),
    List(ListArgs),
    Delete(DeleteArgs),
    Rotate(RotateArgs),
    NewKey(NewKeyArgs),
}

/// Set values of a Secret. Its other keys stay as they are.
///
/// With a KEY the value is read from standard input, without the end of its last line.
#[derive(clap::Args, Debug)]
struct SetArgs {
    /// The Secret; it is made where there is none.
    #[arg(value_name = "NAME")]
    name: String,

    /// The key whose value comes on standard input.
    #[arg(value_name = "KEY", required_unless_present_any = ["from_file", "from_literal"])]
    key: Option<String>,

    /// Take a value from a file, as it is; without KEY its name is the key. The flag may be given more than once.
    #[arg(long, value_name = "[KEY=]PATH")]
    from_file: Vec<String>,

    /// Take a value from the command line, where others may see it. The flag may be given more than once.
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<Literal>,
}

/// A value on the command line. It is shown nowhere.
#[derive(Clone)]
struct Literal {
    key: String,
    value: String,
}

impl std::fmt::Debug for Literal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Literal").field("key", &self.key).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Literal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// List Secrets and their keys, without the values.
#[derive(clap::Args, Debug)]
struct ListArgs {
    /// List the Secrets of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

/// Delete a Secret, or some of its keys.
#[derive(clap::Args, Debug)]
struct DeleteArgs {
    /// The Secret.
    #[arg(value_name = "NAME")]
    name: String,

    /// The keys; without one the whole Secret.
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
}

/// Put all secrets under the first key of the controller's key file, which is read again.
///
/// `windlass secret new-key FILE` puts a new key there. When this has ended, the file needs the other keys no more; backups of
/// before still do.
#[derive(clap::Args, Debug)]
struct RotateArgs {}

/// Put a new key at the head of a file for `--secrets-key-file`. The file is made where there is none.
#[derive(clap::Args, Debug)]
struct NewKeyArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.action {
        Action::Set(args) => set(context, args).await,
        Action::List(args) => list(context, &args).await,
        Action::Delete(args) => delete(context, &args).await,
        Action::Rotate(RotateArgs {}) => rotate(context).await,
        Action::NewKey(args) => new_key(context, &args),
    }
}

async fn set(context: &Context, args: SetArgs) -> Result<Exit, Failure> {
    let name = args.name.clone();
    let values = values(args)?;
    let (settings, client) = context.connect()?;
    let keys = values.len();
    client.set_secret(&settings.namespace.value, &name, &SecretRequest { values }).await?;
    let keys = if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
    context.console.line(format!("secret/{name} set: {keys}"))?;
    Ok(Exit::Success)
}

/// The values that a command line names, each key once.
fn values(args: SetArgs) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    let SetArgs { name: _, key, from_file, from_literal } = args;
    let usage = |what: String| Failure::from(Report::new(Exit::Usage, what));
    let mut values = BTreeMap::new();
    let mut add = |key: String, value: Vec<u8>| match values.insert(key.clone(), SecretBytes::new(value)) {
        None => Ok(()),
        Some(_) => Err(usage(format!("the key `{key}` is given twice"))),
    };
    if let Some(key) = key {
        add(key, from_stdin()?)?;
    }
    for text in from_file {
        let (key, path) = match text.split_once('=') {
            Some((key, path)) => (key.to_owned(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(&text);
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                (name.ok_or_else(|| usage(format!("{text} names no file")))?, path)
            }
        };
        let read = std::fs::read(&path);
        let value = read.map_err(|error| {
            Failure::from(Report::new(Exit::Usage, format!("cannot read {}", path.display())).causes(&error))
        })?;
        add(key, value)?;
    }
    for Literal { key, value } in from_literal {
        add(key, value.into_bytes())?;
    }
    Ok(values)
}

/// What comes on standard input, without the end of its last line.
fn from_stdin() -> Result<Vec<u8>, Failure> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        let hint = "for example: windlass secret set NAME KEY < FILE";
        let report = Report::new(
            Exit::Usage,
            "the value comes on standard input, which is a terminal that would show it",
        );
        return Err(report.hint(hint).into());
    }
    let mut value = Vec::new();
    // One byte more than fits tells that it is too much.
    let most = MAX_VALUE_BYTES as u64 + 2;
    let read = stdin.by_ref().take(most).read_to_end(&mut value);
    read.map_err(|error| {
        Failure::from(Report::new(Exit::Failed, "cannot read standard input").causes(&error))
    })?;
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    Ok(value)
}

async fn list(context: &Context, args: &ListArgs) -> Result<Exit, Failure> {
    let (settings, client) = context.connect()?;
    let namespace = (!args.all_namespaces).then_some(settings.namespace.value.as_str());
    let secrets = client.secrets(namespace).await?;
    let console = context.console;
    match args.output {
        PlainFormat::Json => console.data(&json::format(&secrets))?,
        PlainFormat::Yaml => console.data(&yaml::format(&secrets))?,
        PlainFormat::Table if secrets.is_empty() => console.note("There are no secrets."),
        PlainFormat::Table => {
            let mut columns = vec![flexible("NAME"), flexible("KEY"), column("BYTES"), column("CHANGED")];
            if args.all_namespaces {
                columns.insert(0, column("NAMESPACE"));
            }
            let now = clock::now();
            let rows: Vec<Vec<Cell>> =
                secrets.iter().flat_map(|secret| rows(secret, args.all_namespaces, now)).collect();
            console.data(&table::format(&columns, &rows, console.width()))?;
        }
    }
    Ok(Exit::Success)
}

fn rows(secret: &Secret, namespaces: bool, now: jiff::Timestamp) -> Vec<Vec<Cell>> {
    let Secret { namespace, name, keys } = secret;
    let row = |key: &SecretKey| {
        let SecretKey { key, bytes, created_at: _, updated_at, sealed_under: _ } = key;
        let mut row = vec![
            Cell::from(name),
            Cell::from(key),
            Cell::from(bytes.to_string()),
            Cell::from(human::age(now, *updated_at)),
        ];
        if namespaces {
            row.insert(0, Cell::from(namespace));
        }
        row
    };
    keys.iter().map(row).collect()
}

async fn delete(context: &Context, args: &DeleteArgs) -> Result<Exit, Failure> {
    let (settings, client) = context.connect()?;
    let namespace = &settings.namespace.value;
    if args.keys.is_empty() {
        client.delete_secret(namespace, &args.name, None).await?;
        context.console.line(format!("secret/{} deleted", args.name))?;
        return Ok(Exit::Success);
    }
    let mut exit = Exit::Success;
    for key in &args.keys {
        match client.delete_secret(namespace, &args.name, Some(key)).await {
            Ok(()) => context.console.line(format!("secret/{} key {key} deleted", args.name))?,
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}

async fn rotate(context: &Context) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    let rotated = client.rotate_secrets().await?;
    let values =
        if rotated.values == 1 { "1 value".to_owned() } else { format!("{} values", rotated.values) };
    context.console.line(format!("{values} put under the key {}", human::printable(&rotated.key)))?;
    context.console.note(
        "All secrets are under the first key of the file. Backups of before still need the keys that they were made with.",
    );
    Ok(Exit::Success)
}

fn new_key(context: &Context, args: &NewKeyArgs) -> Result<Exit, Failure> {
    let added = secrets::add_key(&args.file, &RandomIds::from_os());
    let key = added.map_err(|error| Report::new(Exit::Failed, error.to_string()).causes(&error))?;
    context.console.line(format!("{} has the key {key}", args.file.display()))?;
    context.console.note("Keep a copy of the file apart from backups: without it secrets cannot be read.");
    Ok(Exit::Success)
}
