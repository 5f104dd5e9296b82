BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE aliases (
	function VARCHAR(63) NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	number INTEGER NOT NULL, 
	PRIMARY KEY (function, name), 
	FOREIGN KEY(function, number) REFERENCES versions (function, number) ON DELETE CASCADE
);
INSERT INTO "aliases" VALUES('weather','live',2);
CREATE TABLE functions (
	name VARCHAR(63) NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "functions" VALUES('site',40.5);
INSERT INTO "functions" VALUES('weather',10.25);
CREATE TABLE keys (
	id VARCHAR(64) NOT NULL, 
	subject TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "keys" VALUES('k1','project','abababababababababababababababababababababababababababababababab',1.5);
INSERT INTO "keys" VALUES('k2','project','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd',2.5);
CREATE TABLE secrets (
	name VARCHAR(64) NOT NULL, 
	value BLOB NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "secrets" VALUES('tokens',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F');
INSERT INTO "secrets" VALUES('ids',X'00FF');
CREATE TABLE sessions (
	id VARCHAR(64) NOT NULL, 
	function VARCHAR(63) NOT NULL, 
	version INTEGER NOT NULL, 
	principal BLOB NOT NULL, 
	affinity TEXT NOT NULL, 
	"key" BLOB NOT NULL, 
	instance VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created_at FLOAT NOT NULL, 
	last_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(function) REFERENCES functions (name) ON DELETE CASCADE
);
INSERT INTO "sessions" VALUES('s2','weather',2,X'610062','header:X-Thread',X'EDB3BF','i-2','running',21.0,22.5);
INSERT INTO "sessions" VALUES('s1','weather',1,X'616E6F6E796D6F7573','mcp',X'','i-1','running',11.0,12.5);
CREATE TABLE versions (
	function VARCHAR(63) NOT NULL, 
	number INTEGER NOT NULL, 
	spec JSON NOT NULL, 
	"plan" JSON NOT NULL, 
	facts JSON NOT NULL, 
	isolation VARCHAR(16) NOT NULL, 
	driver VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created_at FLOAT NOT NULL, 
	error TEXT NOT NULL, 
	PRIMARY KEY (function, number), 
	FOREIGN KEY(function) REFERENCES functions (name) ON DELETE CASCADE
);
INSERT INTO "versions" VALUES('site',1,'{"name": "site", "kind": "web", "runtime": "command", "entry": null, "command": "python -m http.server $PORT", "transport": null, "port": 9000, "path": null, "isolation": null, "env": {}, "limits": {"cpu": 0.5, "memory": 268435456, "pids": 256, "timeout": 120.0, "startup": 30.0, "body": 4194304}, "scale": {"min": 0, "max": 100, "concurrency": 32, "target": 0.7, "idle": 60.0, "queue": 1000}, "session": {"affinity": {"kind": "none", "name": ""}, "per_instance": 20, "idle": 1800.0, "lifetime": 21600.0}, "auth": null}','{"argv": ["sh", "-c", "x"], "env": {}, "code": "/layers/code-2", "deps": null, "interpreter": null, "notes": []}','{"transport": "http", "path": "/mcp", "modern": false, "legacy": true, "stateful": true}','process','process','starting',40.5,'');
INSERT INTO "versions" VALUES('weather',1,'{"name": "weather", "kind": "mcp", "runtime": "python3.11", "entry": "server:mcp", "command": null, "transport": "http", "port": 9100, "path": "/mcp", "isolation": "container", "env": {"UNITS": "metric", "\u03a9": "ohm"}, "limits": {"cpu": 0.25, "memory": 268435456, "pids": 99, "timeout": 7.5, "startup": 9.0, "body": 1024}, "scale": {"min": 1, "max": 7, "concurrency": 3, "target": 0.5, "idle": 11.0, "queue": 13}, "session": {"affinity": {"kind": "header", "name": "X-Thread"}, "per_instance": 2, "idle": 5.0, "lifetime": 50.0}, "auth": "key"}','{"argv": ["{serve}", "server:mcp"], "env": {"A": "{app}"}, "code": "/layers/code-1", "deps": "/layers/deps-1", "interpreter": {"executable": "/usr/bin/python3", "prefix": "/usr", "version": "3.11.2"}, "notes": ["mcp<2"]}','{"transport": "sse", "path": "/sse", "modern": true, "legacy": false, "stateful": false}','container','oci','ready',10.25,'');
INSERT INTO "versions" VALUES('weather',2,'{"name": "weather", "kind": "mcp", "runtime": "python3.11", "entry": "server:mcp", "command": null, "transport": "http", "port": 9100, "path": "/mcp", "isolation": "container", "env": {"UNITS": "metric", "\u03a9": "ohm"}, "limits": {"cpu": 0.25, "memory": 268435456, "pids": 99, "timeout": 7.5, "startup": 9.0, "body": 1024}, "scale": {"min": 1, "max": 7, "concurrency": 3, "target": 0.5, "idle": 11.0, "queue": 13}, "session": {"affinity": {"kind": "header", "name": "X-Thread"}, "per_instance": 2, "idle": 5.0, "lifetime": 50.0}, "auth": "key"}','{"argv": ["{serve}", "server:mcp"], "env": {"A": "{app}"}, "code": "/layers/code-1", "deps": "/layers/deps-1", "interpreter": {"executable": "/usr/bin/python3", "prefix": "/usr", "version": "3.11.2"}, "notes": ["mcp<2"]}','{"transport": "sse", "path": "/sse", "modern": true, "legacy": false, "stateful": false}','container','oci','ready',20.0,'');
INSERT INTO "versions" VALUES('weather',3,'{"name": "weather", "kind": "mcp", "runtime": "python3.11", "entry": "server:mcp", "command": null, "transport": "http", "port": 9100, "path": "/mcp", "isolation": "container", "env": {"UNITS": "metric", "\u03a9": "ohm"}, "limits": {"cpu": 0.25, "memory": 268435456, "pids": 99, "timeout": 7.5, "startup": 9.0, "body": 1024}, "scale": {"min": 1, "max": 7, "concurrency": 3, "target": 0.5, "idle": 11.0, "queue": 13}, "session": {"affinity": {"kind": "header", "name": "X-Thread"}, "per_instance": 2, "idle": 5.0, "lifetime": 50.0}, "auth": "key"}','{"argv": ["{serve}", "server:mcp"], "env": {"A": "{app}"}, "code": "/layers/code-1", "deps": "/layers/deps-1", "interpreter": {"executable": "/usr/bin/python3", "prefix": "/usr", "version": "3.11.2"}, "notes": ["mcp<2"]}','{"transport": "http", "path": "/mcp", "modern": false, "legacy": true, "stateful": true}','container','oci','failed',30.0,'it''s not there: 日本
');
CREATE INDEX sessions_by_function ON sessions (function);
COMMIT;
