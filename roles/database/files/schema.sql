-- The schema that Asterisk's PJSIP reads and writes, and the accounts that may.
--
-- Run by centralino-database.service after each start of the database: every statement may be repeated, and
-- none enters the binary log, so that both nodes of a pair make their schema themselves and a slave never holds
-- a transaction that its master has not.
--
-- The columns are the options of PJSIP's objects in Asterisk 16 up to 22 (a contact is written with all columns
-- that the running release has, so all must exist; columns that it does not know are ignored).
-- None is shorter than 64 characters: below 256 bytes InnoDB could not store a column off the page, and a row of
-- this many columns would not fit.
SET SESSION sql_log_bin = 0;

CREATE DATABASE IF NOT EXISTS centralino CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- No passwords: the socket tells MariaDB which user of the system is calling. `asterisk` is the PBX core,
-- `centralino` owns the data (jobs that need no root).
CREATE USER IF NOT EXISTS asterisk@localhost IDENTIFIED VIA unix_socket;
GRANT SELECT, INSERT, UPDATE, DELETE ON centralino.* TO asterisk@localhost;
CREATE USER IF NOT EXISTS centralino@localhost IDENTIFIED VIA unix_socket;
GRANT ALL PRIVILEGES ON centralino.* TO centralino@localhost;
-- The other node of a pair, which reads the log of changes as a system user of its own.
CREATE USER IF NOT EXISTS `centralino-replica`@localhost IDENTIFIED VIA unix_socket;
GRANT REPLICATION SLAVE ON *.* TO `centralino-replica`@localhost;

-- Whose data this is: drawn when a pair is formed, copied with the data. Two nodes with different ones have
-- nothing in common, whatever their positions say.
CREATE DATABASE IF NOT EXISTS centralino_pair CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS centralino_pair.lineage (
    one TINYINT NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    identifier CHAR(36) NOT NULL
) ENGINE = InnoDB;
-- Written once whenever the other node has come back: only a transaction makes the server notice that commits
-- can wait for it again.
CREATE TABLE IF NOT EXISTS centralino_pair.pulse (
    one TINYINT NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    moment DATETIME(6) NOT NULL
) ENGINE = InnoDB;
GRANT SELECT ON centralino_pair.lineage TO `centralino-replica`@localhost;

USE centralino;

CREATE TABLE IF NOT EXISTS ps_endpoints (
    id VARCHAR(80) NOT NULL PRIMARY KEY,
    `100rel` VARCHAR(64) NULL,
    aggregate_mwi VARCHAR(64) NULL,
    allow VARCHAR(200) NULL,
    allow_overlap VARCHAR(64) NULL,
    aors TEXT NULL,
    auth VARCHAR(255) NULL,
    callerid VARCHAR(80) NULL,
    callerid_privacy VARCHAR(64) NULL,
    callerid_tag VARCHAR(64) NULL,
    context VARCHAR(80) NULL,
    direct_media_glare_mitigation VARCHAR(64) NULL,
    direct_media_method VARCHAR(64) NULL,
    trust_connected_line VARCHAR(64) NULL,
    send_connected_line VARCHAR(64) NULL,
    connected_line_method VARCHAR(64) NULL,
    direct_media VARCHAR(64) NULL,
    disable_direct_media_on_nat VARCHAR(64) NULL,
    disallow VARCHAR(200) NULL,
    dtmf_mode VARCHAR(64) NULL,
    media_address VARCHAR(64) NULL,
    bind_rtp_to_media_address VARCHAR(64) NULL,
    force_rport VARCHAR(64) NULL,
    ice_support VARCHAR(64) NULL,
    identify_by VARCHAR(64) NULL,
    redirect_method VARCHAR(64) NULL,
    mailboxes VARCHAR(255) NULL,
    mwi_subscribe_replaces_unsolicited VARCHAR(64) NULL,
    voicemail_extension VARCHAR(64) NULL,
    moh_suggest VARCHAR(64) NULL,
    outbound_auth VARCHAR(255) NULL,
    outbound_proxy VARCHAR(255) NULL,
    rewrite_contact VARCHAR(64) NULL,
    rtp_ipv6 VARCHAR(64) NULL,
    rtp_symmetric VARCHAR(64) NULL,
    send_diversion VARCHAR(64) NULL,
    send_history_info VARCHAR(64) NULL,
    send_pai VARCHAR(64) NULL,
    send_rpid VARCHAR(64) NULL,
    rpid_immediate VARCHAR(64) NULL,
    timers_min_se VARCHAR(64) NULL,
    timers VARCHAR(64) NULL,
    timers_sess_expires VARCHAR(64) NULL,
    transport VARCHAR(64) NULL,
    trust_id_inbound VARCHAR(64) NULL,
    trust_id_outbound VARCHAR(64) NULL,
    use_ptime VARCHAR(64) NULL,
    use_avpf VARCHAR(64) NULL,
    force_avp VARCHAR(64) NULL,
    media_use_received_transport VARCHAR(64) NULL,
    media_encryption VARCHAR(64) NULL,
    media_encryption_optimistic VARCHAR(64) NULL,
    g726_non_standard VARCHAR(64) NULL,
    inband_progress VARCHAR(64) NULL,
    call_group VARCHAR(64) NULL,
    pickup_group VARCHAR(64) NULL,
    named_call_group VARCHAR(64) NULL,
    named_pickup_group VARCHAR(64) NULL,
    device_state_busy_at VARCHAR(64) NULL,
    t38_udptl VARCHAR(64) NULL,
    t38_udptl_ec VARCHAR(64) NULL,
    t38_udptl_maxdatagram VARCHAR(64) NULL,
    fax_detect VARCHAR(64) NULL,
    fax_detect_timeout VARCHAR(64) NULL,
    t38_udptl_nat VARCHAR(64) NULL,
    t38_udptl_ipv6 VARCHAR(64) NULL,
    t38_bind_udptl_to_media_address VARCHAR(64) NULL,
    tone_zone VARCHAR(64) NULL,
    language VARCHAR(64) NULL,
    one_touch_recording VARCHAR(64) NULL,
    record_on_feature VARCHAR(64) NULL,
    record_off_feature VARCHAR(64) NULL,
    rtp_engine VARCHAR(64) NULL,
    allow_transfer VARCHAR(64) NULL,
    user_eq_phone VARCHAR(64) NULL,
    moh_passthrough VARCHAR(64) NULL,
    sdp_owner VARCHAR(64) NULL,
    sdp_session VARCHAR(64) NULL,
    tos_audio VARCHAR(64) NULL,
    tos_video VARCHAR(64) NULL,
    cos_audio VARCHAR(64) NULL,
    cos_video VARCHAR(64) NULL,
    allow_subscribe VARCHAR(64) NULL,
    sub_min_expiry VARCHAR(64) NULL,
    from_user VARCHAR(80) NULL,
    mwi_from_user VARCHAR(64) NULL,
    from_domain VARCHAR(80) NULL,
    dtls_verify VARCHAR(64) NULL,
    dtls_rekey VARCHAR(64) NULL,
    dtls_auto_generate_cert VARCHAR(64) NULL,
    dtls_cert_file VARCHAR(200) NULL,
    dtls_private_key VARCHAR(200) NULL,
    dtls_cipher VARCHAR(200) NULL,
    dtls_ca_file VARCHAR(200) NULL,
    dtls_ca_path VARCHAR(200) NULL,
    dtls_setup VARCHAR(64) NULL,
    dtls_fingerprint VARCHAR(64) NULL,
    srtp_tag_32 VARCHAR(64) NULL,
    set_var TEXT NULL,
    message_context VARCHAR(80) NULL,
    accountcode VARCHAR(80) NULL,
    preferred_codec_only VARCHAR(64) NULL,
    rtp_keepalive VARCHAR(64) NULL,
    rtp_timeout VARCHAR(64) NULL,
    rtp_timeout_hold VARCHAR(64) NULL,
    acl VARCHAR(64) NULL,
    deny VARCHAR(255) NULL,
    permit VARCHAR(255) NULL,
    contact_acl VARCHAR(64) NULL,
    contact_deny VARCHAR(255) NULL,
    contact_permit VARCHAR(255) NULL,
    subscribe_context VARCHAR(80) NULL,
    contact_user VARCHAR(80) NULL,
    asymmetric_rtp_codec VARCHAR(64) NULL,
    rtcp_mux VARCHAR(64) NULL,
    refer_blind_progress VARCHAR(64) NULL,
    notify_early_inuse_ringing VARCHAR(64) NULL,
    max_audio_streams VARCHAR(64) NULL,
    max_video_streams VARCHAR(64) NULL,
    bundle VARCHAR(64) NULL,
    webrtc VARCHAR(64) NULL,
    incoming_mwi_mailbox VARCHAR(64) NULL,
    follow_early_media_fork VARCHAR(64) NULL,
    accept_multiple_sdp_answers VARCHAR(64) NULL,
    suppress_q850_reason_headers VARCHAR(64) NULL,
    ignore_183_without_sdp VARCHAR(64) NULL,
    stir_shaken VARCHAR(64) NULL,
    stir_shaken_profile VARCHAR(80) NULL,
    allow_unauthenticated_options VARCHAR(64) NULL,
    geoloc_incoming_call_profile VARCHAR(80) NULL,
    geoloc_outgoing_call_profile VARCHAR(80) NULL,
    codec_prefs_incoming_offer VARCHAR(64) NULL,
    codec_prefs_outgoing_offer VARCHAR(64) NULL,
    codec_prefs_incoming_answer VARCHAR(64) NULL,
    codec_prefs_outgoing_answer VARCHAR(64) NULL,
    overlap_context VARCHAR(80) NULL,
    security_negotiation VARCHAR(64) NULL,
    security_mechanisms VARCHAR(512) NULL,
    send_aoc VARCHAR(64) NULL,
    tenantid VARCHAR(64) NULL,
    suppress_moh_on_sendonly VARCHAR(64) NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ps_auths (
    id VARCHAR(80) NOT NULL PRIMARY KEY,
    auth_type VARCHAR(64) NULL,
    nonce_lifetime INT NULL,
    md5_cred VARCHAR(64) NULL,
    password VARCHAR(80) NULL,
    realm VARCHAR(255) NULL,
    username VARCHAR(64) NULL,
    refresh_token VARCHAR(255) NULL,
    oauth_clientid VARCHAR(255) NULL,
    oauth_secret VARCHAR(255) NULL,
    password_digest VARCHAR(1024) NULL,
    supported_algorithms_uac VARCHAR(1024) NULL,
    supported_algorithms_uas VARCHAR(1024) NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ps_aors (
    id VARCHAR(80) NOT NULL PRIMARY KEY,
    contact VARCHAR(255) NULL,
    default_expiration INT NULL,
    mailboxes VARCHAR(255) NULL,
    voicemail_extension VARCHAR(64) NULL,
    maximum_expiration INT NULL,
    max_contacts INT NULL,
    minimum_expiration INT NULL,
    remove_existing VARCHAR(64) NULL,
    remove_unavailable VARCHAR(64) NULL,
    qualify_frequency INT NULL,
    qualify_timeout VARCHAR(64) NULL,
    authenticate_qualify VARCHAR(64) NULL,
    outbound_proxy VARCHAR(255) NULL,
    support_path VARCHAR(64) NULL,
    qualify_2xx_only VARCHAR(64) NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ps_domain_aliases (
    id VARCHAR(80) NOT NULL PRIMARY KEY,
    domain VARCHAR(64) NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ps_contacts (
    id VARCHAR(255) NOT NULL PRIMARY KEY,
    uri VARCHAR(511) NULL,
    expiration_time BIGINT NULL,
    qualify_frequency INT NULL,
    qualify_timeout VARCHAR(64) NULL,
    authenticate_qualify VARCHAR(64) NULL,
    outbound_proxy VARCHAR(255) NULL,
    path TEXT NULL,
    user_agent VARCHAR(255) NULL,
    endpoint VARCHAR(255) NULL,
    reg_server VARCHAR(255) NULL,
    via_addr VARCHAR(64) NULL,
    via_port INT NULL,
    call_id VARCHAR(255) NULL,
    prune_on_boot VARCHAR(64) NULL,
    qualify_2xx_only VARCHAR(64) NULL,
    INDEX contacts_of_endpoint (endpoint),
    INDEX contacts_by_expiry (qualify_frequency, expiration_time)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ps_endpoint_id_ips (
    id VARCHAR(80) NOT NULL PRIMARY KEY,
    endpoint VARCHAR(255) NULL,
    `match` VARCHAR(255) NULL,
    srv_lookups VARCHAR(64) NULL,
    match_header VARCHAR(255) NULL,
    match_request_uri VARCHAR(255) NULL,
    transport VARCHAR(64) NULL,
    INDEX identified_endpoint (endpoint)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row a call; cdr_adaptive_odbc fills the columns that it finds here.
CREATE TABLE IF NOT EXISTS cdr (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    start DATETIME NULL,
    answer DATETIME NULL,
    end DATETIME NULL,
    clid VARCHAR(80) NULL,
    src VARCHAR(80) NULL,
    dst VARCHAR(80) NULL,
    dcontext VARCHAR(80) NULL,
    channel VARCHAR(80) NULL,
    dstchannel VARCHAR(80) NULL,
    lastapp VARCHAR(80) NULL,
    lastdata VARCHAR(80) NULL,
    duration INT NULL,
    billsec INT NULL,
    disposition VARCHAR(45) NULL,
    amaflags VARCHAR(45) NULL,
    accountcode VARCHAR(80) NULL,
    peeraccount VARCHAR(80) NULL,
    uniqueid VARCHAR(150) NULL,
    linkedid VARCHAR(150) NULL,
    userfield VARCHAR(255) NULL,
    sequence INT NULL,
    INDEX calls_by_start (start),
    INDEX calls_by_source (src),
    INDEX calls_by_destination (dst),
    INDEX calls_by_uniqueid (uniqueid)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
