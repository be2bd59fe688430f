#!/usr/bin/perl
# Whether docs/errors.md has what the code tells clients, users of SQL and the log, in the same words;
# and whether what its tables quote is in the code.
use strict;
use warnings;
use utf8;
binmode STDERR, ':utf8';

my ($folder) = $0 =~ m{^(.*)/};
chdir(($folder // '.') . '/..') or die;

my %closes = (
    Normal => 1000, Protocol => 1002, Unsupported => 1003, Invalid => 1007, Policy => 1008,
    Size => 1009, Restart => 1012, Again => 1013,
);
my %statuses = (
    BAD_REQUEST => 400, UNAUTHORIZED => 401, FORBIDDEN => 403, NOT_FOUND => 404,
    METHOD_NOT_ALLOWED => 405, PAYLOAD_TOO_LARGE => 413, UNSUPPORTED_MEDIA_TYPE => 415,
    UNPROCESSABLE_ENTITY => 422, UPGRADE_REQUIRED => 426, TOO_MANY_REQUESTS => 429,
    SERVICE_UNAVAILABLE => 503,
    # No errors.
    OK => 0, ACCEPTED => 0, NO_CONTENT => 0, SWITCHING_PROTOCOLS => 0,
    # Of answers that are no `{"error"}`.
    CONFLICT => 0, GONE => 0,
);
# Of hyper's own, which answers before our code is asked.
my @of_hyper = (414, 431);
my %sqlstates = (
    active_sql_transaction => '25001', array_subscript_error => '2202E',
    character_not_in_repertoire => '22021', connection_failure => '08006',
    dependent_objects_still_exist => '2BP01', external_routine_exception => '38000',
    insufficient_privilege => '42501', internal_error => 'XX000', invalid_name => '42602',
    invalid_parameter_value => '22023', invalid_role_specification => '0P000',
    invalid_schema_name => '3F000', io_error => '58030', name_too_long => '42622',
    null_value_not_allowed => '22004', object_not_in_prerequisite_state => '55000',
    program_limit_exceeded => '54000', reserved_name => '42939', TD001 => 'TD001',
    invalid_function_definition => '42P13', undefined_column => '42703',
    undefined_object => '42704', undefined_table => '42P01', wrong_object_type => '42809',
);

# Texts that nobody is told, or not as errors.
my @others = (
    qr/^…$/,
    qr/^not a request: /,                                   # of a function that is revoked
    qr/^select \* from tide\.check/,                        # a hint
    qr/^(text|default-src|authorization, )/,                # headers
    qr/^GET, POST/,
    qr/^(Subscribed to PostgreSQL|caught up; |tide\.caught_up$|resync: )/,   # good news
    qr/^invalid column for filter /,                        # told as a refusal without a reason
    qr/^(event|schema|table|filter|select) must be /,
    qr/^(tide resolver|a ref|a ref is too long|an object)$/,
    # Not told at all: what is no frame is only counted.
    qr/^(the message is |expected an object with|expected \[join_ref|the binary message |a binary message )/,
    qr/^(vsn 1\.0\.0 has no binary frames)$/,
);

my $page = slurp('docs/errors.md');
my (@missing, %known);

sub slurp {
    my ($path) = @_;
    open my $file, '<:utf8', $path or die "$path: $!";
    local $/;
    return scalar <$file>;
}

sub files {
    my $patterns = join ' ', map { "'$_'" } @_;
    return grep { -e } split /\n/, `git ls-files --cached --others --exclude-standard -- $patterns`;
}

# Without tests, in which nobody is told anything.
sub rust {
    my ($path) = @_;
    my $code = slurp($path);
    $code =~ s/\n#\[cfg\(test\)\]\nmod tests \{.*//s;
    return $code;
}

# What the page writes for a piece of text that differs.
sub generic {
    my ($text) = @_;
    $text =~ s/…(?:…)+/…/g;
    return $text;
}

# The texts in a piece of Rust.
sub literals {
    my ($code) = @_;
    my @found;
    while ($code =~ m{//[^\n]*|'(?:\\.|[^\\'])'|r(#*)"(.*?)"\1|"((?:\\.|[^"\\])*)"}sg) {
        my $text = $3 // $2 // next;
        $text =~ s/\\\n\s*//g;
        $text =~ s/\\"/"/g;
        $text =~ s/\{\{/\x01/g;
        $text =~ s/\}\}/\x02/g;
        $text =~ s/\{[\w.:?#]*\}/…/g;
        $text =~ tr/\x01\x02/{}/;
        $text =~ s/^HTTP.*\{"error":"(.*)"\}$/$1/;
        push @found, generic($text);
    }
    return @found;
}

# The texts in a piece of SQL.
sub strings {
    my ($sql) = @_;
    my @found;
    while ($sql =~ /--[^\n]*|'((?:''|[^'])*)'/g) {
        my $text = $1 // next;
        $text =~ s/''/'/g;
        $text =~ s/%(?:\d\$)?[sIL]/…/g;
        push @found, generic($text);
    }
    return @found;
}

sub need {
    my ($path, @texts) = @_;
    for my $text (@texts) {
        $text =~ s/^pg_tide: //;
        next if grep { $text =~ $_ } @others;
        push @missing, "$path: not on the page: $text" if index($page, $text) < 0;
    }
}

# A code, and in the same row the words that are sent with it, where they are known.
sub need_code {
    my ($path, $code, $what, $text) = @_;
    $code // die "$path: $what: scripts/errors.pl does not know its code\n";
    return if !$code;
    $known{$code} = 1;
    need($path, "`$code`");
    return if !is_sentence($text // '') || grep { $text =~ $_ } @others;
    my @rows = grep { index($_, "`$code`") >= 0 && index($_, $text) >= 0 } split /\n/, $page;
    push @missing, "$path: not on the page with $code: $text" if !@rows;
}

sub is_sentence { return $_[0] =~ /[a-zA-Z]{2}.* .*[a-zA-Z]/s }

# A text that follows a code.
my $given = qr/(?:,\s*("(?:\\.|[^"\\])*"))?/s;

# What clients are told.
my $server = 'crates/server/src';
for my $path (files("$server/server/*.rs", "$server/wire/*.rs", "$server/auth/error.rs",
                    "$server/filter/parse.rs", "$server/filter/compile.rs", "$server/topic.rs")) {
    next if $path =~ m{/tests|golden|/tls\.rs$};
    my $code = rust($path);
    while ($code =~ /CloseCode::([A-Z][a-z]\w+)(?=$given)/g) {
        need_code($path, $closes{$1}, $1, (literals($2 // ''))[0]);
    }
    while ($code =~ /StatusCode::([A-Z_]+)(?=$given)/g) {
        need_code($path, $statuses{$1}, $1, (literals($2 // ''))[0]);
    }
    for my $text (literals($code)) {
        my $is_code = $text =~ /^tide\.[a-z_]+$/ || $text =~ /^[a-z]+_[a-z]+_exceeded$/
            || $path =~ /error\.rs|identity\.rs/ && $text =~ /^[A-Z][A-Za-z]{9,}$/;
        need($path, $text) if $is_code || is_sentence($text);
    }
}
for my $path (map { "$server/hub/$_" } 'lagging.rs', 'registry.rs', 'stream/mod.rs', 'stream/join.rs') {
    my $code = rust($path);
    need($path, "`$1`")
        while $code =~ /(?:const [A-Z_]+: &str = |Err\(|reason: |=> )"([a-z_.]+)"/g;
}

# What users of SQL are told.
my $parentheses = qr/(\((?:[^()"]|"(?:\\.|[^"\\])*"|(?-1))*\))/s;
for my $path (files('src/*.rs')) {
    my $code = rust($path);
    need($path, (literals($1))[0]) while $code =~ /\bwarning!$parentheses/g;
    my $is_sql = $path =~ m{^src/(backend/|encoding|source/plugin)};
    need($path, grep { is_sentence($_) } map { literals($_) } $code =~ /#\[error$parentheses\]/g)
        if $path =~ m{^src/(backend/|socket|source/crash_page|source/slot)};
    next if !$is_sql;
    need_code($path, $sqlstates{lc $1}, $1) while $code =~ /ERRCODE_(\w+)/g;
    while ($code =~ /(?:report::raise|ErrorReport::new|ereport!)$parentheses/g) {
        my ($raised, $before) = ($1, substr $code, 0, $-[0]);
        my $text = (literals($raised))[0] // next;
        # In the call, or just before it.
        my $of = $raised =~ /ERRCODE_(\w+)/ ? $1 : $before =~ /.*ERRCODE_(\w+)/s ? $1 : next;
        need_code($path, $sqlstates{lc $of}, $of, $text);
    }
}
for my $path (files('sql/extension/*.sql')) {
    my $sql = slurp($path);
    while ($sql =~ /raise (?:exception|warning) using(.*?);\n/sg) {
        my $raised = $1;
        my ($message) = $raised =~ /message = (.*?)(?:,\s*(?:detail|hint) =|$)/s;
        my @texts = grep { is_sentence($_) } strings($message);
        need($path, @texts);
        my ($of) = $raised =~ /errcode = '(\w+)'/ or next;
        need_code($path, $sqlstates{$of}, $of, $_) for @texts ? @texts : '';
    }
    # The items of tide.check().
    next if $path !~ /check/;
    need($path, strings($1)) while $sql =~ /(?:return query select|union all\s+select|begin atomic\s+select)\s+(?:format\()?('[^']*')/g;
}

# What the log has.
for my $path (files('crates/*/src/*.rs')) {
    next if $path =~ m{/tests|/fault\.rs};
    my $code = rust($path);
    need($path, (literals($1))[0]) while $code =~ /log::(?:warn|error)!$parentheses/g;
}

# What the page quotes.
my %said;
for my $path (files('crates/*.rs', 'src/*.rs')) {
    next if $path =~ m{/tests};
    $said{$_} = 1 for literals(rust($path));
}
for my $path (files('sql/*.sql')) {
    $said{$_} = 1 for strings(slurp($path));
}
$known{$_} = 1 for @of_hyper;
my $said = join "\n", keys %said;
my $number = 0;
for my $line (split /\n/, $page) {
    $number++;
    my ($cell) = $line =~ /^\| (.*?) \|/ or next;
    while ($cell =~ /``(.*?)``|`(.*?)`/g) {
        my $quoted = $1 // $2;
        my $is_there = $quoted =~ /^[0-9A-Z]{3,5}$/ && $quoted =~ /\d/
            ? $known{$quoted} : index($said, $quoted) >= 0;
        push @missing, "docs/errors.md:$number: not in the code: $quoted" if !$is_there;
    }
}

my %seen;
print STDERR "$_\n" for grep { !$seen{$_}++ } @missing;
exit(@missing ? 1 : 0);
