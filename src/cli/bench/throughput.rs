//! How many requests a second, and how long each takes: one cluster, or ours and etcd in turn.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, Kind};
use super::load::{self, Load, Sample};
use super::request::Mix;
use super::{BenchArguments, BenchFailure, Report, Versus, note};
use crate::cli::client::print::table;
use crate::cli::scratch::Scratch;

/// One cell of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    mix: Mix,
    clients: usize,
}

/// A sample with what the servers spent on it.
#[derive(Clone, Debug)]
struct Measured {
    sample: Sample,
    /// Processor time of all servers together for one request, in microseconds; unknown for servers of others.
    server_cpu_us: Option<f64>,
}

/// Middle, lowest and highest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

/// Loads the given endpoints.
pub(super) async fn endpoints(
    arguments: &BenchArguments,
    addresses: &[String],
    interrupt: &CancellationToken,
) -> Result<Report, BenchFailure> {
    load::fill(addresses, arguments.keys, arguments.size, interrupt).await?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for cell in cells(arguments) {
        let sample = load::run(&load_of(arguments, cell), addresses, interrupt).await?;
        note(&format!("{} {}: {}", cell.mix.name(), cell.clients, rate(sample.per_second)));
        let measured = Measured { sample, server_cpu_us: None };
        rows.push(vec![
            cell.mix.name().to_owned(),
            cell.clients.to_string(),
            rate(measured.sample.per_second),
            millis(&measured.sample, 0.5),
            millis(&measured.sample, 0.99),
            measured.sample.failed.to_string(),
            format!("{:.1}", measured.sample.client_cpu_us),
        ]);
        values.push(json!({ "mix": cell.mix.name(), "clients": cell.clients, "rounds": [value(&measured)] }));
    }
    load::clear(addresses).await?;
    let head = ["MIX", "CLIENTS", "REQUESTS/S", "P50 MS", "P99 MS", "FAILED", "CLIENT CPU US"];
    Ok(Report {
        text: table(&head, rows.into_iter()),
        value: json!({ "endpoints": addresses, "results": values }),
    })
}

/// Loads ours and another in turn: both are up all the time, one of them idle.
pub(super) async fn versus(
    arguments: &BenchArguments,
    versus: Versus,
    scratch: &Scratch,
    interrupt: &CancellationToken,
) -> Result<Report, BenchFailure> {
    let ours = Cluster::start(Kind::Ours, scratch.join("ours"), 3).await?;
    let name = versus.kind().name();
    let other = Cluster::start(versus.kind(), scratch.join(name), 3).await?;
    for cluster in [&ours, &other] {
        load::fill(&cluster.addresses(), arguments.keys, arguments.size, interrupt).await?;
    }
    let cells = cells(arguments);
    let mut results: Vec<(Cell, Vec<Measured>, Vec<Measured>)> =
        cells.into_iter().map(|cell| (cell, Vec::new(), Vec::new())).collect();
    for round in 0..arguments.rounds {
        for (cell, of_ours, of_other) in &mut results {
            let load = load_of(arguments, *cell);
            // Whoever comes second finds a warmer disk; so they take turns.
            let order = if round % 2 == 0 { [&ours, &other] } else { [&other, &ours] };
            for cluster in order {
                let measured = measure(&load, cluster, interrupt).await?;
                let what = format!("{} {} {}", cluster.kind.name(), cell.mix.name(), cell.clients);
                note(&format!(
                    "round {} of {}: {what}: {}",
                    round + 1,
                    arguments.rounds,
                    rate(measured.sample.per_second)
                ));
                match cluster.kind {
                    Kind::Ours => of_ours.push(measured),
                    Kind::Etcd | Kind::Old => of_other.push(measured),
                }
            }
        }
    }
    let mut text =
        table(&head(name), results.iter().map(|(cell, of_ours, of_other)| row(*cell, of_ours, of_other)));
    let (ours_ms, other_ms) = (ours.started_in.as_millis(), other.started_in.as_millis());
    text.extend(
        format!("spawn of three empty nodes to the first acknowledged write: ours {ours_ms} ms, {name} {other_ms} ms\n")
            .into_bytes(),
    );
    let values: Vec<Value> = results
        .iter()
        .map(|(cell, of_ours, of_other)| {
            let ratio = spread(&ratios(of_ours, of_other));
            json!({
                "mix": cell.mix.name(),
                "clients": cell.clients,
                "ratio": { "median": ratio.median, "min": ratio.low, "max": ratio.high },
                "ours": of_ours.iter().map(value).collect::<Value>(),
                name: of_other.iter().map(value).collect::<Value>(),
            })
        })
        .collect();
    let value = json!({
        "start_ms": { "ours": ours.started_in.as_secs_f64() * 1e3, name: other.started_in.as_secs_f64() * 1e3 },
        "results": values,
    });
    Ok(Report { text, value })
}

fn head(other: &str) -> [&'static str; 11] {
    let (per_second, latency) = match other {
        "etcd" => ("ETCD/S", "ETCD P50/P99 MS"),
        _ => ("OLD/S", "OLD P50/P99 MS"),
    };
    [
        "MIX",
        "CLIENTS",
        "OURS/S",
        per_second,
        "RATIO",
        "MIN–MAX",
        "OURS P50/P99 MS",
        latency,
        "FAILED",
        "SERVER CPU US",
        "CLIENT CPU US",
    ]
}

fn row(cell: Cell, of_ours: &[Measured], of_other: &[Measured]) -> Vec<String> {
    let ratio = spread(&ratios(of_ours, of_other));
    let per_second = |all: &[Measured]| rate(spread(&each(all, |one| one.sample.per_second)).median);
    let latency = |all: &[Measured]| {
        let sum = all.iter().skip(1).fold(all[0].sample.clone(), |mut sum, one| {
            sum.latency.add(&one.sample.latency).expect("histograms of one shape");
            sum
        });
        format!("{}/{}", millis(&sum, 0.5), millis(&sum, 0.99))
    };
    let failed = |all: &[Measured]| all.iter().map(|one| one.sample.failed).sum::<u64>();
    let server = |all: &[Measured]| spread(&each(all, |one| one.server_cpu_us.unwrap_or(0.0))).median;
    let client = |all: &[Measured]| spread(&each(all, |one| one.sample.client_cpu_us)).median;
    vec![
        cell.mix.name().to_owned(),
        cell.clients.to_string(),
        per_second(of_ours),
        per_second(of_other),
        format!("{:.2}", ratio.median),
        format!("{:.2}–{:.2}", ratio.low, ratio.high),
        latency(of_ours),
        latency(of_other),
        format!("{}/{}", failed(of_ours), failed(of_other)),
        format!("{:.0}/{:.0}", server(of_ours), server(of_other)),
        format!("{:.1}/{:.1}", client(of_ours), client(of_other)),
    ]
}

async fn measure(
    load: &Load,
    cluster: &Cluster,
    interrupt: &CancellationToken,
) -> Result<Measured, BenchFailure> {
    let before = cluster.cpu_time();
    let sample = load::run(load, &cluster.addresses(), interrupt).await?;
    let spent = cluster.cpu_time().saturating_sub(before).as_secs_f64() * 1e6;
    let share = load.measured_share(cluster.addresses().len());
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
    let requests = sample.latency.len() as f64;
    Ok(Measured { sample, server_cpu_us: Some(spent * share / requests) })
}

fn cells(arguments: &BenchArguments) -> Vec<Cell> {
    let of_mix = |mix: Mix| arguments.clients.iter().map(move |clients| Cell { mix, clients: *clients });
    arguments.mix.iter().copied().flat_map(of_mix).collect()
}

fn load_of(arguments: &BenchArguments, cell: Cell) -> Load {
    Load {
        mix: cell.mix,
        clients: cell.clients,
        measured: arguments.seconds,
        value_length: arguments.size,
        keys: arguments.keys,
        connections: arguments.connections,
    }
}

fn each(all: &[Measured], number: impl Fn(&Measured) -> f64) -> Vec<f64> {
    all.iter().map(number).collect()
}

/// Round by round, because what disturbs a shared machine disturbs neighbours in time alike.
fn ratios(of_ours: &[Measured], of_other: &[Measured]) -> Vec<f64> {
    of_ours
        .iter()
        .zip(of_other)
        .map(|(ours, other)| ours.sample.per_second / other.sample.per_second)
        .collect()
}

fn spread(numbers: &[f64]) -> Spread {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else {
        return Spread { median: 0.0, low: 0.0, high: 0.0 };
    };
    let middle = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    Spread { median: middle, low: *low, high: *high }
}

fn rate(per_second: f64) -> String {
    format!("{per_second:.0}")
}

fn millis(sample: &Sample, quantile: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a histogram ends at a minute")]
    let micros = sample.latency.value_at_quantile(quantile) as f64;
    format!("{:.2}", micros / 1000.0)
}

fn value(measured: &Measured) -> Value {
    let sample = &measured.sample;
    json!({
        "per_second": sample.per_second,
        "p50_us": sample.latency.value_at_quantile(0.5),
        "p99_us": sample.latency.value_at_quantile(0.99),
        "max_us": sample.latency.max(),
        "failed": sample.failed,
        "client_cpu_us": sample.client_cpu_us,
        "server_cpu_us": measured.server_cpu_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let all = spread(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(all, Spread { median: 2.5, low: 1.0, high: 4.0 });
        assert_eq!(spread(&[7.0]), Spread { median: 7.0, low: 7.0, high: 7.0 });
    }
}
